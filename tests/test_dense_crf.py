"""dense_crf: Caffe's own results bit for bit, the exact Gaussians' twin, by hand, and as an operator."""

import re
import threading
import time

import numpy as np
import pytest
import torch
from conftest import cpu_kernels_only, golden, slow_emulated
from op_inputs import LAYOUTS, laid_out, sparse_pictures

from repro.bench import lattice
from repro.ops import dense_crf, reference

SMALL, LARGE = golden("dense_crf.npz"), golden("dense_crf_large.npz")
SMALL_SETTING = (3, 3, 5, 50, 10)  # pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std
IMPLEMENTATIONS = pytest.mark.parametrize("op", [dense_crf, reference.dense_crf], ids=["kernel", "reference"])
CASES = pytest.mark.parametrize("case", SMALL["case_names"].tolist())


def small(case, device="cpu"):
    """Scores and image of a small golden."""
    return [torch.tensor(SMALL[f"{case}/{name}"], device=device) for name in ("unary_logprob", "image_bgr_u8")]


def large(case, device="cpu"):
    scores = torch.tensor(LARGE[f"{case}/unary_x8_i8"], device=device).float() / 8
    return scores, torch.tensor(LARGE[f"{case}/image_bgr_u8"], device=device)


def pictures(n, c, height, width):
    """Scores that are smooth but for noise, and images of blocks."""
    coarse = torch.randn(n, c, 3, 3)
    scores = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear") * 2
    scores = torch.log_softmax(scores + torch.randn(n, c, height, width) / 2, dim=1)
    blocks = torch.randint(0, 230, (n, 3, 2, 3)).float()
    image = torch.nn.functional.interpolate(blocks, size=(height, width)) + torch.rand(n, 3, height, width) * 20
    return scores, image.to(torch.uint8)


@CASES
@pytest.mark.parametrize("iterations", [1, 10])
def test_equals_caffe_bit_for_bit(case, iterations, device):
    found = dense_crf(*small(case, device), iterations, *SMALL_SETTING)
    assert found.dtype == torch.float32
    assert np.array_equal(found.cpu().numpy(), SMALL[f"{case}/prob_iter{iterations}"])


def assert_is_caffes(found, key):
    """Compares with what is kept of a large golden: the labels, every fourth row and column, the sums of the classes."""
    found = found.cpu().numpy()
    assert np.array_equal(found.argmax(axis=1), LARGE[f"{key}/argmax"])
    kept = found[:, :, 2::4, 2::4]
    assert np.array_equal(np.where(kept < 1e-6, 0, kept), LARGE[f"{key}/prob_every4"])
    if f"{key}/class_mass" in LARGE:
        assert found.astype(np.float64).sum(axis=(0, 2, 3)) == pytest.approx(LARGE[f"{key}/class_mass"], rel=1e-9)


@slow_emulated
@pytest.mark.parametrize("case", LARGE["case_names"].tolist())
def test_larger_pictures_equal_caffe_bit_for_bit(case, device):
    scores, image = large(case, device)
    for key in {key.rsplit("/", 1)[0] for key in LARGE if re.match(rf"{case}/w\d", key)}:
        bi_w, bi_xy_std, bi_rgb_std, iterations = map(int, re.findall(r"(?:w|xy|rgb|iter)(\d+)", key.split("/", 1)[1]))
        assert_is_caffes(dense_crf(scores, image, iterations, 3, 3, bi_w, bi_xy_std, bi_rgb_std), key)
    centred = image.float() - torch.tensor(LARGE["mean_bgr"], device=device)[:, None, None]
    assert_is_caffes(dense_crf(scores, centred, 10, 3, 3, 5, 67, 3), f"{case}/mean_subtracted")


def test_each_image_of_a_batch_has_its_own_kernels_where_caffe_takes_the_firsts(device):
    scores, image = large("batch2_padded", device)
    height, width = LARGE["batch2_padded/dim"][1]
    iterations, *setting = LARGE["batch2_padded/params"].tolist()
    cut = [x[..., :height, :width] for x in (scores, image)]
    found = dense_crf(*cut, iterations, 3, 3, 5, *setting).cpu().numpy()
    own = LARGE["batch2_padded/prob_item1_with_own_image"][..., :height, :width]
    assert np.array_equal(found[1:], own)
    caffes = dense_crf(cut[0][1:], cut[1][:1], iterations, 3, 3, 5, *setting).cpu().numpy()
    assert np.array_equal(caffes, LARGE["batch2_padded/prob"][1:, :, :height, :width])
    assert not np.array_equal(own, caffes)


@pytest.mark.parametrize("case", [key.split("/")[0] for key in SMALL if key.endswith("/exact_prob_iter10")])
def test_the_reference_is_the_mean_field_of_exact_gaussians(case, device):
    found = reference.dense_crf(*small(case, device), 10, *SMALL_SETTING).cpu()
    assert (found - torch.tensor(SMALL[f"{case}/exact_prob_iter10"])).abs().max() <= 1e-7


@pytest.mark.parametrize("shape", [(2, 3, 20, 31), (1, 9, 41, 17)], ids=str)
def test_the_lattice_approximates_the_exact_gaussians_no_worse_than_in_the_goldens(shape, device):
    scores, image = (x.to(device) for x in pictures(*shape))
    worst = [SMALL[f"{case}/agreement_iter10"] for case in SMALL["case_names"]]
    found, exact = (op(scores, image, 10, *SMALL_SETTING) for op in (dense_crf, reference.dense_crf))
    assert (found - exact).abs().mean() <= max(mean for mean, _, _ in worst)
    assert (found.argmax(1) == exact.argmax(1)).double().mean() >= min(agreement for *_, agreement in worst)


def test_the_last_four_pixels_are_filled_up_with_zeros_as_in_caffe(device):
    for seed in range(20):
        scores, image = (x.to(device) for x in sparse_pictures(seed))
        found = dense_crf(scores, image, 1, 0, 3, 5, 3, 10)
        assert (found - lattice.dense_crf(scores, image, 1, 0, 3, 5, 3, 10)).abs().max() <= 2e-6


def test_equals_kraehenbuehls_library():
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="needs the extra bench: pip install .[bench]")
    for seed in range(20):
        scores, image = sparse_pictures(seed)
        field = densecrf.DenseCRF(9, 3)
        field.setUnaryEnergy(-scores[0].reshape(3, 9).numpy())
        xy = np.stack(np.meshgrid(range(3), range(3))).reshape(2, 9) / 3
        features = np.concatenate([xy, image[0].reshape(3, 9) / 10]).astype(np.float32)
        field.addPairwiseEnergy(features, compat=5, normalization=densecrf.NORMALIZE_AFTER)
        theirs = torch.from_numpy(np.array(field.inference(1))).reshape(1, 3, 3, 3)
        assert (dense_crf(scores, image, 1, 0, 3, 5, 3, 10) - theirs).abs().max() <= 2e-6


@IMPLEMENTATIONS
def test_one_pixel_by_hand(op, device):
    scores = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64)
    q = torch.softmax(scores, dim=0)
    for _ in range(3):
        q = torch.softmax(scores + (3 + 5) * q, dim=0)  # either kernel is the pixel itself
    scores = scores.reshape(1, 3, 1, 1).to(device)
    found = op(scores, torch.full((1, 3, 1, 1), 7, dtype=torch.uint8, device=device), 3, *SMALL_SETTING)
    assert found.flatten().tolist() == pytest.approx(q.tolist(), abs=2e-6)


@IMPLEMENTATIONS
def test_without_iterations_or_weights_it_is_the_softmax(op, device):
    scores, image = (x.to(device) for x in pictures(2, 5, 6, 7))
    expected = torch.softmax(scores.double(), dim=1)
    found = op(scores, image, 0, *SMALL_SETTING)
    assert (found - expected).abs().max() <= 1e-6
    assert torch.equal(op(scores, image, 4, 0, 3, 0, 50, 10), found)


def test_a_class_far_below_the_best_is_exactly_zero(device):
    scores = torch.tensor([0.0, -20.0, -20.001, -1e30], device=device).reshape(1, 4, 1, 1)
    found = dense_crf(scores, torch.zeros(1, 3, 1, 1, device=device), 0, *SMALL_SETTING).flatten().tolist()
    assert found[1] > 0
    assert found[2:] == [0, 0]


@IMPLEMENTATIONS
def test_one_class_is_certain(op, device):
    scores, image = (x.to(device) for x in pictures(1, 1, 5, 9))
    assert torch.equal(op(scores, image, 3, *SMALL_SETTING), torch.ones_like(scores))


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0), (2, 58), (80, 0)])
def test_classes_that_are_nowhere_change_no_bit(before, after, device):
    """So that Caffe's results hold for any number of classes: those of 3 become 4, 63 and 83."""
    scores, image = small("c3_24x32", device)
    nowhere = [torch.full((1, classes, 24, 32), -500.0, device=device) for classes in (before, after)]
    found = dense_crf(torch.cat([nowhere[0], scores, nowhere[1]], dim=1), image, 10, *SMALL_SETTING)
    assert np.array_equal(found[:, before : before + 3].cpu().numpy(), SMALL["c3_24x32/prob_iter10"])
    assert found.sum().item() == pytest.approx(24 * 32)
    assert not found[:, :before].any()
    assert not found[:, before + 3 :].any()


def test_permuted_classes_are_permuted_results(device):
    scores, image = small("c7_28x30", device)
    order = torch.randperm(7)
    found = dense_crf(scores[:, order], image, 1, *SMALL_SETTING)  # but for the sum over classes, which has its order
    assert (found - dense_crf(scores, image, 1, *SMALL_SETTING)[:, order]).abs().max() <= 1e-6


@pytest.mark.parametrize("wide", [False, True], ids=["uint8", "float32"])
def test_a_batch_is_its_images_and_threads_change_no_bit(wide, device):
    scores, image = (x.to(device) for x in pictures(2, 5, 100, 90))  # two runs of features, when there are two threads
    image = image.float() if wide else image
    batch = dense_crf(scores, image, 2, *SMALL_SETTING)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for n in range(2):
        assert torch.equal(dense_crf(scores[n : n + 1], image[n : n + 1], 2, *SMALL_SETTING), batch[n : n + 1])
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(dense_crf(scores, image, 2, *SMALL_SETTING), batch)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("value", [0, 255])
def test_flat_images_and_wide_gaussians_average(value, device):
    """Every pixel lies in one simplex: the kernel's row is the same for all, and q the mean."""
    scores, _ = (x.to(device) for x in pictures(1, 4, 19, 23))
    image = torch.full((1, 3, 19, 23), value, dtype=torch.uint8, device=device)
    found = dense_crf(scores, image, 1, 2, 1e6, 3, 1e6, 1e6)
    mean = torch.softmax(scores.double(), dim=1).mean(dim=(2, 3), keepdim=True)
    assert (found - torch.softmax(scores.double() + 5 * mean, dim=1)).abs().max() <= 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_and_types_change_no_bit(layout, device):
    scores, image = (x.to(device) for x in pictures(2, 5, 14, 11))
    if layout == "expanded":
        scores, image = (x[:1].repeat(2, 1, 1, 1) for x in (scores, image))
    expected = dense_crf(scores, image, 2, *SMALL_SETTING)
    given = laid_out(scores, layout), laid_out(image, layout)
    assert torch.equal(dense_crf(*given, 2, *SMALL_SETTING), expected)
    assert torch.equal(dense_crf(given[0].double(), given[1].float(), 2, *SMALL_SETTING), expected)


@IMPLEMENTATIONS
def test_no_images(op, device):
    found = op(torch.zeros(0, 4, 5, 6, device=device), torch.zeros(0, 3, 5, 6, device=device), 2, *SMALL_SETTING)
    assert found.shape == (0, 4, 5, 6)
    assert found.dtype == torch.float32


@IMPLEMENTATIONS
def test_the_result_has_no_gradient(op, device):
    scores, image = (x.to(device) for x in pictures(1, 3, 4, 5))
    assert not op(scores.requires_grad_(), image, 1, *SMALL_SETTING).requires_grad


def test_opcheck(device):
    scores, image = (x.to(device) for x in pictures(2, 3, 6, 5))
    for given in ((scores, image), (scores.double(), image.float())):
        torch.library.opcheck(torch.ops.repro.dense_crf.default, (*given, 2, *map(float, SMALL_SETTING)))


def test_compiles_without_a_graph_break(device):
    def label(scores, image):
        return dense_crf(scores * 2, image, 2, *SMALL_SETTING).argmax(dim=1)

    given = [x.to(device) for x in pictures(1, 3, 6, 5)]
    assert torch.equal(torch.compile(label, backend="aot_eager", fullgraph=True)(*given), label(*given))


@cpu_kernels_only  # the host runs one CUDA thread at a time
def test_other_python_threads_go_on():
    """As the test stage needs it, which runs the network beside it."""
    scores, image = pictures(1, 21, 200, 200)
    worker = threading.Thread(target=dense_crf, args=(scores, image, 10, *SMALL_SETTING))
    woken = 0
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        woken += 1
    assert woken >= 10  # of some hundred; two if the interpreter's lock were held


@cpu_kernels_only  # the host runs one CUDA thread at a time
def test_the_interpreters_threads_may_share_it():
    given = [pictures(1, 4, 30, 40) for _ in range(4)]
    expected = [dense_crf(*pair, 3, *SMALL_SETTING) for pair in given]
    found = [None] * 4

    def run(n):
        found[n] = dense_crf(*given[n], 3, *SMALL_SETTING)

    workers = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_reference_refuses_large_images():
    scores = torch.zeros(1, 2, 65, 200)
    message = r"^reference\.dense_crf: an image must have at most 8192 pixels; got 65 x 200; run the kernel"
    with pytest.raises(ValueError, match=message):
        reference.dense_crf(scores, torch.zeros(1, 3, 65, 200), 1, *SMALL_SETTING)


SCORES, IMAGE = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"log_prob": SCORES[0]},
            r"log_prob must have 4 dimensions \(N, C, H, W\); got shape \[3, 4, 5\]; add or drop",
        ),
        ({"log_prob": SCORES.half()}, r"log_prob must be float32 or float64; got Half; convert it with"),
        ({"log_prob": SCORES.long()}, r"log_prob must be float32, float64, bfloat16 or float16; got Long; convert it"),
        ({"log_prob": SCORES[:, :0]}, r"log_prob must have 1 to 4096 classes; got shape \[2, 0, 4, 5\]; check"),
        ({"log_prob": SCORES[:, :, :0]}, r"log_prob must have at least one row and one column; got shape"),
        ({"log_prob": SCORES / 0}, r"log_prob must be finite in float32; got infinity or NaN; clamp probabilities"),
        ({"log_prob": SCORES - INF}, r"log_prob must be finite in float32; got infinity or NaN"),
        ({"log_prob": SCORES.double() - 1e300}, r"log_prob must be finite in float32; got infinity or NaN"),
        ({"image": IMAGE.long()}, r"image must be uint8 or float32; got Long; convert it with"),
        ({"image": IMAGE.double()}, r"image must be uint8 or float32; got Double; convert it with"),
        ({"image": IMAGE + NAN}, r"image must be finite; got infinity or NaN; check how it was read"),
        (
            {"image": IMAGE[:, :1]},
            r"image must have shape \(N=2, 3, H=4, W=5\) as log_prob; got \[2, 1, 4, 5\]; resize",
        ),
        ({"image": IMAGE[:1]}, r"image must have shape \(N=2, 3, H=4, W=5\) as log_prob; got \[1, 3, 4, 5\]; resize"),
        ({"image": IMAGE[..., 1:]}, r"image must have shape \(N=2, 3, H=4, W=5\) as log_prob; got \[2, 3, 4, 4\]"),
        ({"image": IMAGE[0]}, r"image must have shape \(N=2, 3, H=4, W=5\) as log_prob; got \[3, 4, 5\]; resize"),
        ({"iterations": -1}, r"iterations must be at least 0; got -1; correct it"),
        ({"pos_w": -0.5}, r"pos_w must be at least 0 and finite; got -0\.5; correct it"),
        ({"bi_w": NAN}, r"bi_w must be at least 0 and finite; got nan; correct it"),
        ({"pos_xy_std": 0}, r"pos_xy_std must be greater than 0 and finite; got 0; correct it"),
        ({"bi_xy_std": -3}, r"bi_xy_std must be greater than 0 and finite; got -3; correct it"),
        ({"bi_rgb_std": 1e-60}, r"bi_rgb_std must be greater than 0 and finite; got 1e-60; correct it"),
        ({"bi_rgb_std": INF}, r"bi_rgb_std must be greater than 0 and finite; got inf; correct it"),
        (
            {"pos_xy_std": 1e-4},
            r"positions / pos_xy_std must span at most 10922 lattice cells from 0; got \d+; enlarge",
        ),
        ({"bi_xy_std": 1e-4}, r"positions / bi_xy_std and colours / bi_rgb_std must span at most 2048 lattice cells"),
        ({"bi_rgb_std": 1e-2}, r"positions / bi_xy_std and colours / bi_rgb_std must span at most 2048 lattice cells"),
        (
            {"image": IMAGE + 1e6},
            r"positions / bi_xy_std and colours / bi_rgb_std must span at most 2048 lattice cells",
        ),
        ({"image": IMAGE.to("meta")}, r"all tensors must be on one device; got cpu, meta; move them"),
    ],
)
def test_messages(changed, message):
    given = {"log_prob": SCORES, "image": IMAGE, "iterations": 1}
    given |= dict(zip(("pos_w", "pos_xy_std", "bi_w", "bi_xy_std", "bi_rgb_std"), SMALL_SETTING, strict=True))
    with pytest.raises(ValueError, match=rf"^dense_crf: {message}"):
        dense_crf(**given | changed)


def test_too_many_pixels():
    scores = torch.zeros(1, 1, 1, 1).expand(1, 1, 2**14, 2**14)
    message = r"^dense_crf: an image must have at most 134217728 pixels; got 16384 x 16384; cut it into tiles"
    with pytest.raises(ValueError, match=message):
        dense_crf(scores, scores.expand(1, 3, -1, -1), 1, *SMALL_SETTING)
