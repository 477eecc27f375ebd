// How Python and the library agree on the arguments of a kernel: whoever reads them declares them.
#pragma once
#include <string>
#include <vector>

#include "device.h"

#define PCONV_EXPORTED extern "C" __attribute__((visibility("default")))

namespace pconv {

// The arguments of a launch or a plan, read in order. They come as 64-bit words, which
// kernels/cuda/library.py writes: first how many there are; a tensor takes two words, a tuple its length and
// then its items (of nested tuples: the outer length, then all items). Without words the same calls write
// down names and kinds, from which Python takes the order: so what is told and what is read cannot differ.
class Args {
 public:
  explicit Args(const int64_t* words) : declares_(!words) {
    if (words) next_ = words + 1, end_ = words + words[0];
  }

  // Of a launch; it comes first and is not declared.
  dim3 grid() {
    const unsigned x = unsigned(take()), y = unsigned(take()), z = unsigned(take());
    return dim3(x, y, z);
  }
  Untyped untyped(const char* name) {
    declare(name, "tensor");
    void* data = reinterpret_cast<void*>(static_cast<uintptr_t>(take()));
    return {data, item()};
  }
  template <class T>
  T* tensor(const char* name) {
    return static_cast<T*>(untyped(name).data);
  }
  int integer(const char* name) {
    declare(name, "int");
    return item();
  }
  int64_t wide(const char* name) {
    declare(name, "long");
    return take();
  }
  float real(const char* name) {
    declare(name, "real");
    const int64_t word = take();
    double value;
    memcpy(&value, &word, 8);
    return static_cast<float>(value);
  }
  // Of float32 products: kTf32 or kIeee.
  int precision(const char* name) {
    declare(name, "precision");
    return item();
  }

  struct Field {
    const char* name;
    int* value;
  };
  void integers(std::initializer_list<Field> fields) {
    for (const Field& field : fields) *field.value = integer(field.name);
  }
  // A tuple of at most `most` ints; returns its length.
  int tuple(const char* name, int* items, int most) {
    declare(name, "tuple");
    const int count = length(most);
    for (int i = 0; i < count; ++i) items[i] = item();
    return count;
  }
  std::vector<int> tuple(const char* name) {
    declare(name, "tuple");
    std::vector<int> items(length(INT32_MAX));
    for (int& one : items) one = item();
    return items;
  }
  // A tuple of at most `most` tuples, each of them the ints that `Row` begins with; returns its length.
  template <int WIDTH, class Row>
  int rows(const char* name, Row* rows, int most) {
    static_assert(WIDTH * sizeof(int) <= sizeof(Row), "");
    declare(name, "rows", WIDTH);
    const int count = length(most);
    for (int i = 0; i < count; ++i) {
      int row[WIDTH];
      for (int& one : row) one = item();
      memcpy(&rows[i], row, sizeof row);
    }
    return count;
  }

  // Whether as much was read as was sent, and every tuple and number fits where it goes. Nothing may be done
  // with what was read before this is asked. Without words: the declaration is finished; false.
  bool complete() {
    finished_ = true;
    return !failed_ && next_ == end_;
  }
  // "kind name,kind name,..."; nothing unless `complete` was asked.
  std::string declaration() const { return finished_ ? declared_ : ""; }

 private:
  void declare(const char* name, const char* kind, int width = 0) {
    if (!declares_) return;
    declared_ += std::string(declared_.empty() ? "" : ",") + kind + (width ? std::to_string(width) : "");
    declared_ += std::string(" ") + name;
  }
  int64_t take() {
    if (next_ == end_) {
      failed_ = true;
      return 0;
    }
    return *next_++;
  }
  int item() {
    const int64_t word = take();
    failed_ |= word != int(word);
    return int(word);
  }
  int length(int most) {
    const int count = item();
    if (count >= 0 && count <= most) return count;
    failed_ = true;
    return 0;
  }

  const int64_t *next_ = nullptr, *end_ = nullptr;
  bool declares_, finished_ = false, failed_ = false;
  std::string declared_;
};

// What a plan tells, as JSON.
class Answer {
 public:
  void put(const char* name, int64_t value) { field(name) += std::to_string(value); }
  void put(const char* name, std::initializer_list<int64_t> items) {
    field(name) += list(items.begin(), items.end(), [](int64_t item) { return std::to_string(item); });
  }
  // Rows of ints.
  template <int WIDTH, class Row>
  void rows(const char* name, const std::vector<Row>& rows) {
    static_assert(WIDTH * sizeof(int) == sizeof(Row), "");
    field(name) += list(rows.begin(), rows.end(), [](const Row& row) {
      int items[WIDTH];
      memcpy(items, &row, sizeof items);
      return list(items, items + WIDTH, [](int item) { return std::to_string(item); });
    });
  }
  std::string text() const { return text_ + "}"; }

 private:
  std::string& field(const char* name) {
    return text_ += (text_.size() > 1 ? ",\"" : "\"") + std::string(name) + "\":";
  }
  template <class Iterator, class Text>
  static std::string list(Iterator begin, Iterator end, Text text) {
    std::string all = "[";
    for (Iterator i = begin; i != end; ++i) all += (i == begin ? "" : ",") + text(*i);
    return all + "]";
  }

  std::string text_ = "{";
};

// Text for Python, which copies it at once.
inline const char* told(const std::string& text) {
  thread_local std::string kept;
  kept = text;
  return kept.c_str();
}

}  // namespace pconv

// Defines
//   int pconv_NAME(const int64_t* words, void* stream): cudaError_t, 0 if the launch was accepted;
//   const char* pconv_NAME_arguments(): what it reads.
// Followed by the body, which reads `args`, returns kInvalidValue unless they are complete, and launches.
#define PCONV_ENTRY(name)                                               \
  static int pconv_launch_##name(pconv::Args& args, void* stream);      \
  PCONV_EXPORTED int pconv_##name(const int64_t* words, void* stream) { \
    pconv::Args args(words);                                            \
    return pconv_launch_##name(args, stream);                           \
  }                                                                     \
  PCONV_EXPORTED const char* pconv_##name##_arguments() {               \
    pconv::Args args(nullptr);                                          \
    pconv_launch_##name(args, nullptr);                                 \
    return pconv::told(args.declaration());                             \
  }                                                                     \
  static int pconv_launch_##name(pconv::Args& args, [[maybe_unused]] void* stream)

// Defines, of a kernel that has no Triton twin,
//   const char* pconv_NAME_plan(const int64_t* words): whether it can compute a problem and what it needs for
//   that, as JSON; empty if these are no arguments of it. Needs no GPU;
//   const char* pconv_NAME_plan_arguments(): what it reads.
// Followed by the body, which reads `args`, returns unless they are complete, and fills `answer`.
#define PCONV_PLAN(name)                                                   \
  static void pconv_plan_##name(pconv::Args& args, pconv::Answer& answer); \
  PCONV_EXPORTED const char* pconv_##name##_plan(const int64_t* words) {   \
    pconv::Args args(words);                                               \
    pconv::Answer answer;                                                  \
    pconv_plan_##name(args, answer);                                       \
    return pconv::told(args.complete() ? answer.text() : "");              \
  }                                                                        \
  PCONV_EXPORTED const char* pconv_##name##_plan_arguments() {             \
    pconv::Args args(nullptr);                                             \
    pconv::Answer unused;                                                  \
    pconv_plan_##name(args, unused);                                       \
    return pconv::told(args.declaration());                                \
  }                                                                        \
  static void pconv_plan_##name(pconv::Args& args, pconv::Answer& answer)
