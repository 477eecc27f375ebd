#include "tensors.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pconv {

// Packed weights and operands of Winograd's products lie far apart, and looking up small pages costs a tenth
// of the time. Scratch memory the allocator mostly hands out again, and weights may be kept. Results are
// fresh memory every time, for which a virtual machine may have to find such pages at great cost.
void ask_for_large_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (bytes >= 2 * int64_t{page}) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

Buffer allocate(int64_t bytes) {
  auto* tensor = new Tensor(torch::stable::empty({std::max<int64_t>(bytes, 1)}, ScalarType::Byte));
  ask_for_large_pages(tensor->mutable_data_ptr(), bytes);
  return Buffer(tensor->mutable_data_ptr(), [tensor](void*) { delete tensor; });
}

int64_t thread_count() {
  return torch::stable::get_num_threads();
}

void parallel_tasks(int64_t n, void (*body)(void*, int64_t, int64_t), void* ctx) {
  const int64_t threads = std::min(n, thread_count());
  if (threads <= 1) {
    for (int64_t i = 0; i < n; ++i) body(ctx, i, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t thread, int64_t) {
    for (int64_t i; (i = next.fetch_add(1)) < n;) body(ctx, i, thread);
  });
}

DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      return DType::f32;
  }
}

ScalarType compute_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The framework's own rule for "this tensor is laid out channels-last", so that fakes and kernels agree.
static bool strides_like_channels_last(const Tensor& t) {
  int64_t least = 0;
  if (t.stride(1) == 0) return false;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least) return false;
    if (d == 0 && least == t.stride(1)) return false;
    least = t.stride(d) * std::max<int64_t>(t.size(d), 1);
  }
  return true;
}

FeatureMap::FeatureMap(const Tensor& t) : tensor(t), channels_last(strides_like_channels_last(t)) {
  if (channels_last)
    tensor = torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
  else if (!t.is_contiguous())
    tensor = torch::stable::contiguous(t);
}

template <class T, class Valid>
static void fill_planes(const Tensor& mask, uint8_t* out, Valid valid) {
  const int64_t C = mask.size(1), H = mask.size(2), W = mask.size(3);
  const int64_t sn = mask.stride(0), sc = mask.stride(1), sh = mask.stride(2), sw = mask.stride(3);
  const T* data = const_data<T>(mask);
  parallel(mask.size(0) * C, [&](int64_t plane, int64_t) {
    const T* from = data + plane / C * sn + plane % C * sc;
    uint8_t* to = out + plane * H * W;
    for (int64_t h = 0; h < H; ++h, from += sh, to += W) {
      if (sw == 1)
        for (int64_t w = 0; w < W; ++w) to[w] = valid(from[w]);
      else
        for (int64_t w = 0; w < W; ++w) to[w] = valid(from[w * sw]);
    }
  });
}

MaskPlanes::MaskPlanes(const OptionalTensor& given) {
  if (!given) return;
  Tensor mask = *given;
  if (mask.size(1) > 1 && mask.stride(1) == 0) mask = torch::stable::narrow(mask, 1, 0, 1);
  if (mask.size(0) > 1 && mask.stride(0) == 0) mask = torch::stable::narrow(mask, 0, 0, 1);
  const ScalarType dtype = mask.scalar_type();
  if ((dtype == ScalarType::Bool || dtype == ScalarType::Byte) && mask.is_contiguous()) {
    planes = mask;
    return;
  }
  planes = torch::stable::empty({mask.size(0), mask.size(1), mask.size(2), mask.size(3)}, ScalarType::Byte);
  uint8_t* out = mutable_data<uint8_t>(*planes);
  const auto nonzero = [](auto v) { return static_cast<uint8_t>(v != 0); };
  switch (dtype) {
    case ScalarType::Double:
      fill_planes<double>(mask, out, nonzero);
      break;
    case ScalarType::Float:
      fill_planes<float>(mask, out, nonzero);
      break;
    case ScalarType::Half:
    case ScalarType::BFloat16:  // all but the sign: -0 is a hole too
      fill_planes<uint16_t>(mask, out, [](uint16_t v) { return static_cast<uint8_t>((v & 0x7fff) != 0); });
      break;
    default:
      fill_planes<uint8_t>(mask, out, nonzero);
  }
}

Source make_source(const FeatureMap& x, const MaskPlanes& mask, int up) {
  Source s;
  s.data = x.tensor.const_data_ptr();
  s.C = x.size(1);
  s.H = x.size(2);
  s.W = x.size(3);
  s.up = up;
  s.channels_last = x.channels_last;
  if (mask.planes) {
    const Tensor& m = *mask.planes;
    s.mask = const_data<uint8_t>(m);
    s.mask_per_channel = m.size(1) > 1;
    s.mask_stride_n = m.size(0) > 1 ? m.size(1) * s.H * s.W : 0;
  }
  return s;
}

Tensor empty_map(int64_t N, int64_t C, int64_t H, int64_t W, ScalarType dtype, bool channels_last) {
  return torch::stable::empty({N, C, H, W}, dtype, std::nullopt, std::nullopt, std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor empty_like_dense(const Tensor& t, ScalarType dtype) {
  return torch::stable::empty(t.sizes(), dtype);
}

Target target_of(const Tensor& t, bool channels_last) {
  return {t.mutable_data_ptr(), channels_last};
}

Tensor updated_mask(const Geometry& g, const Windows& w, ScalarType dtype) {
  Tensor out = empty_map(g.N, 1, g.Ho, g.Wo, dtype, false);
  const int64_t plane = g.Ho * g.Wo;
  const auto fill = [&](auto* to, auto one) {
    for (int64_t n = 0; n < g.N; ++n) {
      const int32_t* count = w.counts(0, g, n);
      for (int64_t i = 0; i < plane; ++i) *to++ = count[i] > 0 ? one : decltype(one)(0);
    }
  };
  switch (dtype) {
    case ScalarType::Double:
      fill(mutable_data<double>(out), 1.0);
      break;
    case ScalarType::Float:
      fill(mutable_data<float>(out), 1.0f);
      break;
    case ScalarType::Half:
      fill(mutable_data<uint16_t>(out), uint16_t{0x3c00});
      break;
    case ScalarType::BFloat16:
      fill(mutable_data<uint16_t>(out), uint16_t{0x3f80});
      break;
    default:
      fill(mutable_data<uint8_t>(out), uint8_t{1});
      break;
  }
  return out;
}

Tensor to_compute(const Tensor& t) {
  Tensor c = t.scalar_type() == compute_type(t) ? t : torch::stable::to(t, compute_type(t));
  return c.is_contiguous() ? c : torch::stable::contiguous(c);
}

OptionalTensor to_compute(const OptionalTensor& t) {
  OptionalTensor c;
  if (t) c = to_compute(*t);
  return c;
}

std::vector<Tensor> to_compute(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& t : tensors) result.push_back(to_compute(t));
  return result;
}

Tensor to_storage(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

Tensor none() {
  return torch::stable::empty({0}, ScalarType::Float);
}

}  // namespace pconv
