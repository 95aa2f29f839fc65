// A C interface, for ctypes, to the CUDA sources compiled with emulated_launch.cuh. Maps are dense NHWC; T is chosen by
// `type`: 0 float32, 1 float64, 2 bfloat16, 3 float16. Sizes are pairs (height, width).
#include "ops.h"

namespace {

using repro::Cuda;
using repro::Size;

Size pair(const int64_t* size) { return {size[0], size[1]}; }

template <class T>
repro::Maps<T> maps(void* const* data, const int64_t* sizes, int S) {
  repro::Maps<T> result{};
  result.S = S;
  for (int s = 0; s < S; ++s) {
    result.data[s] = static_cast<T*>(data[s]);
    result.size[s] = pair(sizes + 2 * s);
  }
  return result;
}

template <class T>
T* as(void* pointer) {
  return static_cast<T*>(pointer);
}

// Calls visit(T()) for the type of that number.
template <class Visit>
void with_type(int type, const Visit& visit) {
  if (type == 0) visit(float());
  if (type == 1) visit(double());
  if (type == 2) visit(repro::bfloat16());
  if (type == 3) visit(repro::float16());
}

}  // namespace

extern "C" {

void set_reversed(int reversed) { emulated::reversed = reversed != 0; }

int launches() { return static_cast<int>(emulated::launches); }

void interp(int type, void* x, const int64_t* in, int64_t N, int64_t C, const int64_t* out, void* y) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    repro::interp<T>(Cuda{}, as<T>(x), pair(in), N, C, pair(out), as<T>(y));
  });
}

void interp_backward(int type, void* dy, const int64_t* out, int64_t N, int64_t C, const int64_t* in, void* dx) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    repro::interp_backward<T>(Cuda{}, as<T>(dy), pair(out), N, C, pair(in), as<T>(dx));
  });
}

void merge_scores(int type, int mode, void* const* scores, const int64_t* sizes, int S, void* logits,
                  const int64_t* logits_size, int64_t N, int64_t C, const int64_t* out, void* merged, void* weights) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    repro::merge_scores<T>(Cuda{}, static_cast<repro::Merge>(mode), maps<const T>(scores, sizes, S), as<T>(logits),
                           pair(logits_size), N, C, pair(out), as<T>(merged), as<T>(weights));
  });
}

void merge_scores_backward(int type, int mode, void* dmerged, void* dweights, void* const* scores, const int64_t* sizes,
                           int S, void* logits, const int64_t* logits_size, int64_t N, int64_t C, const int64_t* out,
                           void* weights, uint8_t* winner, void* const* dscores, void* dlogits) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    repro::merge_scores_backward<T>(Cuda{}, static_cast<repro::Merge>(mode), as<T>(dmerged), as<T>(dweights),
                                    maps<const T>(scores, sizes, S), as<T>(logits), pair(logits_size), N, C, pair(out),
                                    as<repro::acc_t<T>>(weights), winner, maps<T>(dscores, sizes, S), as<T>(dlogits));
  });
}

void predict(int type, void* x, const int64_t* in, int64_t N, int64_t C, const int64_t* out, const int64_t* crop,
             void* labels, void* probability) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto run = [&](auto* to) {
      repro::predict<T>(Cuda{}, as<T>(x), pair(in), N, C, pair(out), pair(crop), to, as<repro::acc_t<T>>(probability));
    };
    C <= 256 ? run(as<uint8_t>(labels)) : run(as<int16_t>(labels));
  });
}

void segmentation_loss(int type, void* scores, const int64_t* in, void* labels, int wide, const int64_t* image,
                       int64_t N, int64_t C, int64_t shrink, int64_t ignore_label, int64_t* counts, double* terms,
                       double* loss, void* dgrid) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto run = [&](const auto* label) {
      repro::count_labels(Cuda{}, label, pair(image), N, C, shrink, ignore_label, counts);
      repro::segmentation_loss<T>(Cuda{}, as<T>(scores), pair(in), label, pair(image), N, C, shrink, ignore_label,
                                  counts, terms, loss, as<T>(dgrid));
    };
    wide ? run(as<int64_t>(labels)) : run(as<uint8_t>(labels));
  });
}

void domain_transform(int type, void* x, void* edge, const int64_t* valid_size, const int64_t* size, int64_t N,
                      int64_t C, int64_t num_iter, const float* sigmas, void* weights, void* map, void* y) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    using Acc = repro::acc_t<T>;
    const repro::Filter filter{num_iter, sigmas[0], sigmas[1], sigmas[2]};
    repro::domain_transform<T>(Cuda{}, as<T>(x), as<T>(edge), valid_size, pair(size), N, C, filter, as<Acc>(weights),
                               as<Acc>(map), as<T>(y));
  });
}

void domain_transform_backward(int type, void* dy, void* x, void* edge, const int64_t* valid_size, const int64_t* size,
                               int64_t N, int64_t C, int64_t num_iter, const float* sigmas, void* weights,
                               void* const* maps, void* dmap, void* sums, void* dx, void* dedge) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    using Acc = repro::acc_t<T>;
    const repro::Filter filter{num_iter, sigmas[0], sigmas[1], sigmas[2]};
    repro::domain_transform_backward<T>(Cuda{}, as<T>(dy), as<T>(x), as<T>(edge), valid_size, pair(size), N, C, filter,
                                        as<Acc>(weights), reinterpret_cast<Acc* const*>(maps), as<Acc>(dmap),
                                        as<Acc>(sums), as<T>(dx), as<T>(dedge));
  });
}

void confusion_matrix(int wide, void* prediction, void* label, int64_t pixels, int64_t num_classes,
                      int64_t ignore_label, int64_t* counts, int64_t* outside) {
  const auto run = [&](auto* from, auto* to) {
    repro::confusion_matrix(Cuda{}, from, to, pixels, num_classes, ignore_label, counts, outside);
  };
  wide ? run(as<const int64_t>(prediction), as<const int64_t>(label))
       : run(as<const uint8_t>(prediction), as<const uint8_t>(label));
}

int64_t dense_crf_scratch(const int64_t* size, int64_t C) { return repro::dense_crf_scratch(Cuda{}, pair(size), C); }

void dense_crf(int wide, void* log_prob, void* image, const int64_t* size, int64_t N, int64_t C, int64_t iterations,
               const float* numbers, void* scratch, float* probability) {
  const repro::DenseCrf crf{iterations, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]};
  const auto run = [&](const auto* colours) {
    repro::dense_crf(Cuda{}, as<float>(log_prob), colours, pair(size), N, C, crf, scratch, probability);
  };
  wide ? run(as<const float>(image)) : run(as<const uint8_t>(image));
}
}
