// A C interface, for ctypes, to the CUDA sources compiled with emulated_launch.cuh; float32, dense NHWC.
#include "interp.cu"
#include "merge_scores.cu"

namespace {

template <class T>
repro::Maps<T> maps(float* const* data, const int64_t* sizes, int S) {
  repro::Maps<T> result{};
  result.S = S;
  for (int s = 0; s < S; ++s) {
    result.data[s] = data[s];
    result.size[s] = {sizes[2 * s], sizes[2 * s + 1]};
  }
  return result;
}

}  // namespace

extern "C" {

void interp(const float* x, const int64_t* in, int64_t N, int64_t C, const int64_t* out, float* y) {
  repro::interp(repro::Cuda{nullptr}, x, {in[0], in[1]}, N, C, {out[0], out[1]}, y);
}

void interp_backward(const float* dy, const int64_t* out, int64_t N, int64_t C, const int64_t* in, float* dx) {
  repro::interp_backward(repro::Cuda{nullptr}, dy, {out[0], out[1]}, N, C, {in[0], in[1]}, dx);
}

void merge_scores(int mode, float* const* scores, const int64_t* sizes, int S, const float* logits,
                  const int64_t* logits_size, int64_t N, int64_t C, const int64_t* out, float* merged, float* weights) {
  repro::merge_scores(repro::Cuda{nullptr}, static_cast<repro::Merge>(mode), maps<const float>(scores, sizes, S),
                      logits, {logits_size[0], logits_size[1]}, N, C, {out[0], out[1]}, merged, weights);
}

void merge_scores_backward(int mode, const float* dmerged, const float* dweights, float* const* scores,
                           const int64_t* sizes, int S, const float* weights, int64_t N, int64_t C, const int64_t* out,
                           uint8_t* winner, float* const* dscores, float* dlogits) {
  repro::merge_scores_backward(repro::Cuda{nullptr}, static_cast<repro::Merge>(mode), dmerged, dweights,
                               maps<const float>(scores, sizes, S), weights, N, C, {out[0], out[1]}, winner,
                               maps<float>(dscores, sizes, S), dlogits);
}
}
