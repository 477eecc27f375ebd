// What the matrix kernels are made of: products of small matrices in a warp's registers, loads of their
// operands from shared memory, and copies from global to shared memory that run beside the computation (sm_80
// and later). Under PCONV_EMULATE the same in plain C++.
//
// An operand is 16 rows (a) or 8 rows (b) of a *slice*: 32 bytes along k, so 16 elements of 16 bits or 8
// float32. With lane = 4 g + q (g 0 to 7, q 0 to 3) of a warp, and w[row][i] the 32-bit words of a slice (i 0
// to 7; two elements of 16 bits in each, the lower k in the lower half):
//
//   a[0] = w[g][q]    a[1] = w[g + 8][q]    a[2] = w[g][q + 4]    a[3] = w[g + 8][q + 4]     rows are m
//   b[0] = w[g][q]    b[1] = w[g][q + 4]                                                     rows are n
//   c[0], c[1] = c(m = g, n = 2 q), c(g, 2 q + 1)    c[2], c[3] = c(g + 8, 2 q), c(g + 8, 2 q + 1)
//
// load_matrices reads four blocks of 8 rows x 16 bytes: lane 8 j + r points to row r of block j, and gets
// word q of row g of block j in out[j]. So an a is the blocks (rows 0-7, first half), (8-15, first), (0-7,
// second), (8-15, second): lane points to row lane % 16, half lane / 16. Two b are (rows 0-7, first), (0-7,
// second), (8-15, first), (8-15, second): row lane / 16 * 8 + lane % 8, half lane / 8 % 2.
// load_matrices_transposed is for elements of 16 bits stored the other way, [k][m or n]: rows r of a block
// are eight k, its 16 bytes eight m (or n), and out[j] gets the words of the transposed block. There an a is
// the blocks (k 0-7, m 0-7), (k 0-7, m 8-15), (k 8-15, m 0-7), (k 8-15, m 8-15); two b (k 0-7, n 0-7), (k
// 8-15, n 0-7), (k 0-7, n 8-15), (k 8-15, n 8-15).
#pragma once
#include "device.h"

namespace pconv {

// PRECISION of float32 products, as kernels/cuda/library.py numbers it.
enum Precision : int { kTf32, kIeee };

// Operands of multiply that are float32 with 10 bits of mantissa.
struct Tf32 {
  uint32_t bits;
};

// Where 16-byte piece `piece` of row `row` lies in a shared tile of rows of `row_bytes`: 32, 64 or a multiple
// of 128. Eight rows that begin at a multiple of eight have the same piece in eight different groups of
// banks.
__host__ __device__ inline int swizzled(int row, int piece, int row_bytes) {
  const int turn = row_bytes >= 128 ? row & 7 : row_bytes == 64 ? (row >> 1) & 3 : (row >> 2) & 1;
  return row * row_bytes + (piece ^ turn) * 16;
}

// float32 to Tf32, to nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(uint32_t bits) {
#ifdef PCONV_EMULATE
  if ((bits & 0x7F800000) == 0x7F800000) return bits;
  return (bits + 0x1000) & 0xFFFFE000;
#else
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
#endif
}

#ifdef PCONV_EMULATE

inline float element_at(const uint32_t* words, int k, Half) {
  return to_float(Half{uint16_t(words[k / 2] >> (k % 2 * 16))});
}
inline float element_at(const uint32_t* words, int k, BFloat16) {
  return to_float(BFloat16{uint16_t(words[k / 2] >> (k % 2 * 16))});
}
inline float element_at(const uint32_t* words, int k, Tf32) {
  return float_of(words[k] & 0xFFFFE000);
}

// c += a b^T in float32.
template <class T>
PCONV_INSTRUCTION void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const emulation::Unwatched unwatched;
  struct Shown {
    uint32_t a[16][8], b[8][8];
  };
  static Shown all[32];  // by warp: blocks run one after the other
  Shown& shown = all[emulation::warp()];
  const int g = emulation::lane() / 4, q = emulation::lane() % 4;
  for (int i = 0; i < 4; ++i) shown.a[g + i % 2 * 8][q + i / 2 * 4] = a[i];
  for (int i = 0; i < 2; ++i) shown.b[g][q + i * 4] = b[i];
  emulation::wait_for_warp(PCONV_CODE, true);
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 32 / int(sizeof(T)); ++k)
      c[i] += element_at(shown.a[g + i / 2 * 8], k, T{}) * element_at(shown.b[2 * q + i % 2], k, T{});
  emulation::wait_for_warp(PCONV_CODE);
}

struct FourWords {
  uint32_t word[4];
};

PCONV_INSTRUCTION void load_matrices(uint32_t (&out)[4], const void* row) {
  const emulation::Unwatched unwatched;
  emulation::check_aligned(row, 16, PCONV_CODE);
  emulation::check_shared(row, 16, true, PCONV_CODE);
  emulation::watch(row, 16, false, PCONV_CODE);
  const int g = emulation::lane() / 4, q = emulation::lane() % 4;
  const auto words = emulation::exchange(static_cast<const char*>(row), PCONV_CODE, true, [&](auto of) {
    FourWords f;
    for (int j = 0; j < 4; ++j) memcpy(&f.word[j], of(8 * j + g) + 4 * q, 4);
    return f;
  });
  for (int j = 0; j < 4; ++j) out[j] = words.word[j];
}
PCONV_INSTRUCTION void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  const emulation::Unwatched unwatched;
  emulation::check_aligned(row, 16, PCONV_CODE);
  emulation::check_shared(row, 16, true, PCONV_CODE);
  emulation::watch(row, 16, false, PCONV_CODE);
  const int g = emulation::lane() / 4, q = emulation::lane() % 4;
  const auto words = emulation::exchange(static_cast<const char*>(row), PCONV_CODE, true, [&](auto of) {
    FourWords f;
    for (int j = 0; j < 4; ++j) {
      uint16_t low, high;
      memcpy(&low, of(8 * j + 2 * q) + 2 * g, 2);
      memcpy(&high, of(8 * j + 2 * q + 1) + 2 * g, 2);
      f.word[j] = low | uint32_t(high) << 16;
    }
    return f;
  });
  for (int j = 0; j < 4; ++j) out[j] = words.word[j];
}

// Begins a copy of BYTES (16, 8 or 4; both addresses multiples of it) to shared memory: the first `valid`
// bytes of `from`, then zeros. Nothing is read if `valid` is 0.
template <int BYTES>
PCONV_INSTRUCTION void copy_async(void* to, const void* from, int valid) {
  static_assert(BYTES == 16 || BYTES == 8 || BYTES == 4, "");
  const emulation::Unwatched unwatched;
  if (valid < 0 || valid > BYTES) emulation::found("a copy of an impossible size", PCONV_CODE);
  emulation::check_aligned(from, BYTES, PCONV_CODE);
  emulation::check_aligned(to, BYTES, PCONV_CODE);
  if (valid) emulation::check_shared(from, BYTES, false, PCONV_CODE);
  emulation::check_shared(to, BYTES, true, PCONV_CODE);
  emulation::watch(from, valid, false, PCONV_CODE);
  emulation::watch(to, BYTES, true, PCONV_CODE);
  auto& open = emulation::block->current->open;
  if (valid) open.push_back({to, from, valid});
  if (valid < BYTES) open.push_back({static_cast<char*>(to) + valid, nullptr, BYTES - valid});
}

// Ends a group of copies of this thread.
inline void commit_copies() {
  const emulation::Unwatched unwatched;
  auto& fiber = *emulation::block->current;
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

// Waits until at most PENDING groups of this thread are under way; a barrier shows their data to other
// threads.
template <int PENDING>
PCONV_INSTRUCTION void wait_for_copies() {
  const emulation::Unwatched unwatched;
  auto& groups = emulation::block->current->groups;
  while (int(groups.size()) > PENDING) {
    for (const auto& copy : groups.front()) {
      copy.from ? memcpy(copy.to, copy.from, copy.bytes) : memset(copy.to, 0, copy.bytes);
      emulation::watch(copy.to, copy.bytes, true, PCONV_CODE);
    }
    groups.erase(groups.begin());
  }
}

#else

template <class T>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#define PCONV_MULTIPLY(T, SHAPE_AND_TYPES)                                           \
  template <>                                                                        \
  __device__ __forceinline__ void multiply<T>(float (&c)[4], const uint32_t (&a)[4], \
                                              const uint32_t (&b)[2]) {              \
    asm("mma.sync.aligned." SHAPE_AND_TYPES                                          \
        " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"           \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                             \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));         \
  }
PCONV_MULTIPLY(Half, "m16n8k16.row.col.f32.f16.f16.f32")
PCONV_MULTIPLY(BFloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
PCONV_MULTIPLY(Tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef PCONV_MULTIPLY

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// Begins a copy of BYTES (16, 8 or 4; both addresses multiples of it) to shared memory: the first `valid`
// bytes of `from`, then zeros. Nothing is read if `valid` is 0. The widest bypasses the L1 cache.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* to, const void* from, int valid) {
  static_assert(BYTES == 16 || BYTES == 8 || BYTES == 4, "");
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from),
                 "n"(BYTES), "r"(valid)
                 : "memory");
  }
}

// Ends a group of copies of this thread.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most PENDING groups of this thread are under way; a barrier shows their data to other
// threads.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#endif

// The same with the number at run time, 0 to 6.
__device__ __forceinline__ void wait_for_copies(int pending) {
  switch (pending) {
    case 0:
      return wait_for_copies<0>();
    case 1:
      return wait_for_copies<1>();
    case 2:
      return wait_for_copies<2>();
    case 3:
      return wait_for_copies<3>();
    case 4:
      return wait_for_copies<4>();
    case 5:
      return wait_for_copies<5>();
    default:
      return wait_for_copies<6>();
  }
}

// Dynamic shared memory a block may have on the current device.
inline size_t most_shared() {
#ifndef PCONV_EMULATE
  int device = 0, bytes = 48 << 10;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return static_cast<size_t>(bytes);
#else
  return static_cast<size_t>(emulation::most_shared);
#endif
}

// Lets a kernel use all of that; more than 48 KiB has to be asked for. The same for every launch, since other
// threads may launch the kernel at this moment.
template <class Kernel>
void allow_shared(Kernel kernel) {
#ifndef PCONV_EMULATE
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most_shared()));
#else
  emulation::allowed_shared.insert(reinterpret_cast<const void*>(kernel));
#endif
}

}  // namespace pconv
