// Mean-field inference on CUDA, image after image: the lattices of permutohedral.cuh, then in every iteration one
// splat and D + 1 blurs a lattice, and one kernel that slices both, adds the scores and takes the softmax. There a block
// owns a run of pixels, whose scores it keeps in shared memory: threads first own single scores, neighbouring threads
// neighbouring classes; then each owns a pixel's softmax, since Caffe sums over the classes in their order; then single
// probabilities. The same bits as on the CPU. Scratch is sized by the most vertices that an image may have, so that
// nothing waits for the device. Bytes an iteration: 16 (D + 1) a pixel and lattice, its rows of values D + 1 times for
// either way, scores and probabilities once.
#include "cuda/permutohedral.cuh"

namespace repro {

namespace {

constexpr int kTileScores = 4096;  // of a block, in shared memory
constexpr int kTilePixels = 128;   // at most
static_assert(kTileScores >= kMostCrfClasses);

// A lattice and what it filtered; null where there is no such term.
template <int D>
struct Term {
  const LatticeCorner* corners;
  const float* share;
  const float* filtered;

  __device__ float of(int64_t p, int64_t c, int64_t C) const {
    float sum = 0;
    for (int r = 0; r <= D; ++r) {
      const LatticeCorner corner = corners[p * (D + 1) + r];
      sum += corner.weight * filtered[corner.vertex * C + c];
    }
    return share[p] * sum;
  }
};

__global__ void __launch_bounds__(kThreads) update_kernel(const float* log_prob, Term<2> positions, Term<5> colours,
                                                          int64_t pixels, int64_t C, int tile_pixels, float* q) {
  __shared__ float tile[kTileScores];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * tile_pixels;
  const int64_t count = (pixels - first < tile_pixels ? pixels - first : tile_pixels) * C;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    const int64_t p = first + i / C;
    float score = log_prob[first * C + i];
    if (positions.filtered != nullptr) score += positions.of(p, i % C, C);
    if (colours.filtered != nullptr) score += colours.of(p, i % C, C);
    tile[i] = score;
  }
  __syncthreads();
  for (int64_t i = threadIdx.x * C; i < count; i += kThreads * C) {
    float* const scores = tile + i;
    float largest = scores[0];
    for (int64_t c = 1; c < C; ++c) largest = scores[c] > largest ? scores[c] : largest;
    float sum = 0;
    for (int64_t c = 0; c < C; ++c) sum += scores[c] = crf_exponential(largest - scores[c]);
    for (int64_t c = 0; c < C; ++c) scores[c] /= sum;
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < count; i += kThreads) q[first * C + i] = tile[i];
}

struct Scratch {
  Lattice<2> positions;
  Lattice<5> colours;
  int64_t bytes;

  Scratch(void* memory, Size size, int64_t C, const DenseCrf& crf) {
    Carver carver(memory);
    positions = carve_lattice<2>(carver, size.H * size.W, C, crf.pos_xy_std, 1.0f);
    colours = carve_lattice<5>(carver, size.H * size.W, C, crf.bi_xy_std, crf.bi_rgb_std);
    bytes = carver.bytes();
  }
};

}  // namespace

int64_t dense_crf_scratch(Cuda, Size size, int64_t C) { return Scratch(nullptr, size, C, DenseCrf{}).bytes; }

template <class I>
void dense_crf(Cuda device, const float* log_prob, const I* image, Size size, int64_t N, int64_t C, const DenseCrf& crf,
               void* memory, float* probability) {
  const int64_t pixels = size.H * size.W;
  const Scratch scratch(memory, size, C, crf);
  const bool with_positions = crf.iterations > 0 && crf.pos_w > 0;
  const bool with_colours = crf.iterations > 0 && crf.bi_w > 0;
  const auto tile_pixels = static_cast<int>(std::clamp<int64_t>(kTileScores / C, 1, kTilePixels));
  if (with_positions && N > 0) build(device, scratch.positions, image, size.W, crf.pos_w);
  for (int64_t n = 0; n < N; ++n) {
    float* const q = probability + n * pixels * C;
    if (with_colours) build(device, scratch.colours, image + n * pixels * 3, size.W, crf.bi_w);
    for (int64_t iteration = 0; iteration <= crf.iterations; ++iteration) {
      Term<2> positions{};
      Term<5> colours{};
      if (iteration > 0 && with_positions)
        positions = {scratch.positions.corners, scratch.positions.share, filter(device, scratch.positions, q, C)};
      if (iteration > 0 && with_colours)
        colours = {scratch.colours.corners, scratch.colours.share, filter(device, scratch.colours, q, C)};
      launch(device, ceil_div(pixels, tile_pixels), kThreads, update_kernel, log_prob + n * pixels * C, positions,
             colours, pixels, C, tile_pixels, q);
    }
  }
}

#define INSTANTIATE(I) \
  template void dense_crf<I>(Cuda, const float*, const I*, Size, int64_t, int64_t, const DenseCrf&, void*, float*);
INSTANTIATE(uint8_t)
INSTANTIATE(float)

}  // namespace repro
