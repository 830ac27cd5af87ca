"""Quality in numbers: held to closed forms, to definitions worked out by hand, and to what is known of each measure."""

import itertools

import numpy as np
import pytest

from edgegen.bench.quality import (
    compare_sets,
    density_coverage,
    diversity,
    frechet_distance,
    frechet_of_normals,
    kernel_distance,
    pixel_features,
    precision_recall,
    psnr_db,
    ssim,
)
from edgegen.errors import InputError


def rng(seed=0):
    return np.random.default_rng(seed)


def random_pixels(*shape):
    return rng().integers(0, 256, shape, dtype=np.uint8)


def rotation(size, seed=0):
    return np.linalg.qr(rng(seed).standard_normal((size, size)))[0]


def test_the_frechet_distance_of_normals_with_the_same_axes_is_that_of_their_spreads():
    # Covariances that commute: |m1 - m2|^2 + sum (s1 - s2)^2, whatever the directions of their axes.
    turn, s1, s2 = rotation(6), rng(1).uniform(0.1, 3, 6), rng(2).uniform(0.1, 3, 6)
    m1, m2 = rng(3).standard_normal((2, 6))
    wanted = np.square(m1 - m2).sum() + np.square(s1 - s2).sum()
    got = frechet_of_normals(m1, turn * s1**2 @ turn.T, m2, turn * s2**2 @ turn.T)
    assert got == pytest.approx(wanted, rel=1e-10)


def test_the_frechet_distance_of_other_normals_is_symmetric_and_never_below_zero():
    for seed in range(10):
        a, b = (factor @ factor.T for factor in rng(seed).standard_normal((2, 5, 5)))
        zero = np.zeros(5)
        there, back = frechet_of_normals(zero, a, zero, b), frechet_of_normals(zero, b, zero, a)
        assert there == pytest.approx(back, rel=1e-9)
        assert there > 0
        assert frechet_of_normals(zero, a, zero, a) == pytest.approx(0, abs=1e-9 * np.trace(a))


def test_the_frechet_distance_of_samples_nears_that_of_their_distributions():
    a = rng(0).standard_normal((20_000, 3))
    b = rng(1).standard_normal((20_000, 3)) * [1, 2, 0.5] + [1, 0, 0]
    # 1 + (1 - 2)^2 + (1 - 0.5)^2 = 2.25; the means and spreads of 20,000 samples are good to about 1 %.
    assert frechet_distance(a, b) == pytest.approx(2.25, rel=0.05)
    assert frechet_distance(a, a + 3) == pytest.approx(27, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a[:, :1], a[:, :1] * 2) == pytest.approx(a[:, 0].var(ddof=1), rel=0.01)  # one feature


def test_fewer_images_than_features_are_no_trouble():
    assert np.isfinite(frechet_distance(rng(0).standard_normal((4, 30)), rng(1).standard_normal((5, 30))))


def test_the_kernel_distance_is_its_definition():
    a, b = rng(0).standard_normal((5, 3)), rng(1).standard_normal((7, 3)) + 1

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    within = [np.mean([kernel(x, y) for x, y in itertools.permutations(s, 2)]) for s in (a, b)]
    wanted = sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(wanted, rel=1e-10)


def test_the_kernel_distance_of_equal_distributions_is_zero_on_average_however_few_the_images():
    found = [kernel_distance(rng(i).standard_normal((12, 4)), rng(1000 + i).standard_normal((9, 4))) for i in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20  # 4 sigma of the mean of 400
    assert min(found) < 0 < max(found)


def test_the_kernel_distance_of_a_point_against_another_is_exact():
    # k(0,0) = 1; k(x,x) = (4/1 + 1)^3 = 125; k(0,x) = 1: 1 + 125 - 2.
    assert kernel_distance(np.zeros((3, 1)), np.full((2, 1), 2.0)) == pytest.approx(124)


def test_precision_and_recall_of_sets_that_lie_apart_or_are_the_same():
    a = rng(0).standard_normal((60, 4))
    assert precision_recall(a, a) == (1.0, 1.0)
    assert precision_recall(a, a + 100) == (0.0, 0.0)


def test_a_collapsed_model_has_precision_and_no_recall():
    reference = np.concatenate([rng(0).standard_normal((50, 2)), rng(1).standard_normal((50, 2)) + 50])
    one_side = rng(2).standard_normal((100, 2)) * 0.3
    precision, recall = precision_recall(reference, one_side)
    assert precision > 0.95  # well inside one of the two clouds
    assert recall < 0.5  # nothing of the other cloud, and only the middle of this one
    assert precision_recall(one_side, reference) == (recall, precision)


def test_precision_and_recall_are_their_definition_on_a_line():
    reference, made = np.array([[0.0], [1.0], [3.0], [10.0]]), np.array([[0.5], [4.9], [5.1], [30.0]])
    # One neighbour: radii of the reference are 1, 1, 2 and 7: within are 0.5, 4.9 and 5.1. Radii of the made ones are 4.4,
    # 0.2, 0.2 and 24.9: within are 0, 1 and 3 (by 0.5) and 10 (by 30).
    assert precision_recall(reference, made, neighbours=1) == (0.75, 1.0)
    # By 30's radius of 24.9, 5.1 is the farthest to be reached; without it only what 0.5 reaches stays.
    made[3] = 5.2
    assert precision_recall(reference, made, neighbours=1) == (1.0, 0.75)


def test_density_and_coverage_are_their_definition_on_a_line():
    reference, made = np.array([[0.0], [1.0], [3.0], [10.0]]), np.array([[0.5], [0.6], [4.9], [30.0]])
    # One neighbour: the reference's radii are 1, 1, 2 and 7. 0.5 and 0.6 lie in two neighbourhoods (of 0 and 1), 4.9 in two
    # (of 3 and 10), 30 in none; each of the four holds one or more.
    assert density_coverage(reference, made, neighbours=1) == (6 / 4, 1.0)
    assert density_coverage(reference, made[:2], neighbours=1) == (2.0, 0.5)


def test_density_and_coverage_of_the_same_distribution_and_of_a_collapsed_one():
    a, b = rng(0).standard_normal((500, 4)), rng(1).standard_normal((500, 4))
    density, coverage = density_coverage(a, b, neighbours=5)
    assert density == pytest.approx(1, abs=0.1)  # on average 1 where both are of one distribution (lemma 1)
    # 1 - (M-1)...(M-k) / ((2M-1)...(2M-k)) is what is expected of equal sets (lemma 2): 0.97 for 5 neighbours.
    assert coverage == pytest.approx(0.97, abs=0.03)
    assert density_coverage(a, a[:1].repeat(500, 0), neighbours=5)[1] < 0.05
    assert density_coverage(a, a + 100, neighbours=5) == (0.0, 0.0)


def test_blocks_do_not_change_the_numbers(monkeypatch):
    a, b = rng(0).standard_normal((50, 3)), rng(1).standard_normal((41, 3)) + 0.5
    whole = compare_sets(a, b)
    monkeypatch.setattr("edgegen.bench.quality._BLOCK", 7)
    assert compare_sets(a, b) == pytest.approx(whole, rel=1e-9)
    assert whole.keys() == {
        *("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"),
        *("diversity", "reference_diversity"),
    }


def test_diversity_is_the_mean_distance():
    assert diversity(np.array([[0.0], [3.0], [0.0]])) == pytest.approx(2.0)
    assert diversity(np.full((5, 3), 1e6)) == 0.0
    # Two standard normal points are 2 / sqrt(pi) apart on average, in one dimension.
    assert diversity(rng().standard_normal((4000, 1))) == pytest.approx(2 / np.sqrt(np.pi), rel=0.05)


def test_psnr_is_its_formula_and_infinite_without_error():
    a = random_pixels(2, 8, 8, 3) // 2
    b = a.copy()
    b[1] += 5
    assert psnr_db(a, b).tolist() == [np.inf, pytest.approx(20 * np.log10(255 / 5))]


def test_ssim_of_flat_images_is_the_term_of_luminance():
    a, b = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b)[0] == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), rel=1e-9)


def test_ssim_is_one_for_the_same_image_and_symmetric():
    a, b = random_pixels(2, 20, 24, 3), rng(9).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    np.testing.assert_allclose(ssim(a, a), 1, rtol=1e-12)
    np.testing.assert_allclose(ssim(a, b), ssim(b, a), rtol=1e-12)
    assert (ssim(a, b) < 0.1).all()  # noise against other noise
    assert (ssim(a, 255 - a) < 0).all()  # a negative


def test_ssim_of_an_11_pixel_image_is_its_formula():
    a, b = random_pixels(1, 11, 11, 1), rng(5).integers(0, 256, (1, 11, 11, 1), dtype=np.uint8)
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.outer(line, line) / line.sum() ** 2
    x, y = a[0, :, :, 0].astype(float), b[0, :, :, 0].astype(float)
    mx, my = (weights * x).sum(), (weights * y).sum()
    vx, vy, cov = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum(), (weights * (x - mx) * (y - my)).sum()
    c1, c2 = 2.55**2, 7.65**2
    wanted = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim(a, b)[0] == pytest.approx(wanted, rel=1e-9)


def test_pixel_features_are_means_of_cells():
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    pixels[1, :2, :2, 0] = 255
    features = pixel_features(pixels)
    assert features.shape == (2, 8 * 8 * 3)
    assert (features[0].max(), features[1, 0], features[1].sum()) == (0, 1, 1)
    odd = random_pixels(3, 11, 5, 1)
    assert pixel_features(odd).shape == (3, 8 * 5)
    assert pixel_features(odd, side=1)[:, 0] == pytest.approx(odd.mean(axis=(1, 2, 3)) / 255)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: frechet_distance(np.zeros((1, 3)), np.zeros((5, 3))), "at least 2 images"),
        (lambda: kernel_distance(np.zeros((5, 3)), np.zeros((5, 4))), "of one kind"),
        (lambda: precision_recall(np.zeros((3, 3)), np.zeros((9, 3))), "at least 4 images"),
        (lambda: diversity(np.full((3, 3), np.nan)), "not all finite"),
        (lambda: diversity(np.zeros(3)), "image, feature"),
        (lambda: ssim(np.zeros((1, 8, 8, 1), np.uint8), np.zeros((1, 8, 8, 1), np.uint8)), "11 pixels"),
        (lambda: psnr_db(np.zeros((1, 8, 8, 1), np.uint8), np.zeros((1, 8, 9, 1), np.uint8)), "of one size"),
    ],
)
def test_what_cannot_be_measured_is_one_line(call, said):
    with pytest.raises(InputError, match=said):
        call()
