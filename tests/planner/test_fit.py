"""What fits, found by bisection, and the cheapest change, on devices of any size."""

import re

import pytest
from bundles import make_bundle
from bundles_to_plan import convolutions, device

from edgegen.errors import UnknownNameError
from edgegen.planner import memory
from edgegen.planner.fit import cheapest_change, cheapest_option, largest
from edgegen.planner.graphs import CPU, Ask, read_bundle
from edgegen.planner.memory import MIB
from edgegen.planner.plan import plan
from edgegen.planner.report import lines
from edgegen.planner.target import target, target_of


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return convolutions(tmp_path_factory.mktemp("fit") / "images.bundle")


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """More weights than values: an engine's file beside it, while it is loaded, takes more than it does when it runs."""
    return convolutions(tmp_path_factory.mktemp("fit") / "heavy.bundle", channels=512, most=64)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("fit") / "text.bundle")


def plan_of(paths, free_mib, ask=None, **options):
    chosen = target(device(free_mib, **options))
    return plan([read_bundle(path, chosen.backend) for path in paths], chosen, ask or Ask())


@pytest.mark.parametrize("step", [1, 3, 8])
@pytest.mark.parametrize("most", [0, 1, 7, 8, 40, 99, 100, 1000])
def test_the_largest_that_fits_is_found(step, most):
    allowed = [size for size in range(step * -(-1 // step), 101, step) if size <= most]
    assert largest(1, 100, step, lambda size: size <= most) == max(allowed, default=0)


def test_what_fits_needs_no_change(images):
    found = plan_of([images], 4000)
    assert found.fits
    assert found.change is None
    assert found.bundles[0].limits.side == 512


def test_the_limits_fit_and_the_next_size_does_not(images):
    one = plan_of([images], 400).bundles[0]
    side, budget = one.limits.side, 400 * MIB
    assert 64 < side < 512
    assert plan_of([images], 400, Ask(height=side, width=side)).bundles[0].size_bytes <= budget
    assert plan_of([images], 400, Ask(height=side + 8, width=side + 8)).bundles[0].size_bytes > budget
    assert 1 <= one.limits.batch <= 8


def test_an_image_that_does_not_fit_is_to_be_cut_into_tiles(images):
    found = plan_of([images], 400, Ask(height=512, width=512))
    assert not found.fits
    assert found.change.what == f"--tile {found.bundles[0].limits.side}"
    assert found.change.size_bytes <= 400 * MIB


def test_the_change_that_is_offered_makes_it_fit(images):
    found = plan_of([images], 400, Ask(height=512, width=512))
    tile = int(found.change.what.removeprefix("--tile "))
    assert plan_of([images], 400, Ask(height=512, width=512, tile=tile)).fits


def test_a_batch_that_does_not_fit_even_in_tiles_becomes_smaller(images):
    small = plan_of([images], 100, Ask(batch=8, height=512, width=512))
    assert not small.fits
    assert "--tile" in small.change.what
    assert small.change.size_bytes <= 100 * MIB


def test_images_beyond_the_exported_batch_are_made_in_several_runs(images):
    most, more = (plan_of([images], 4000, Ask(batch=batch)).bundles[0] for batch in (8, 1000))
    assert (more.ask.batch, more.size_bytes) == (8, most.size_bytes)
    assert [roof.per_s for roof in more.roofs] == [roof.per_s for roof in most.roofs]


def test_where_nothing_helps_it_is_said(text):
    found = plan_of([text], 20)
    assert (found.fits, found.change) == (False, None)
    assert found.bundles[0].limits.context == 0
    assert any("none found that makes it fit" in line for line in lines(found, 120))


def test_a_set_is_loaded_one_after_the_other_where_it_does_not_fit_together(images):
    one = plan_of([images], 4000).bundles[0]
    free_mib = (one.size_bytes >> 20) + 5
    found = plan_of([images, images, images], free_mib)
    assert all(planned.fits for planned in found.bundles)
    assert not found.fits
    assert found.in_turns_bytes <= free_mib * MIB
    assert found.change is not None
    assert found.change.size_bytes <= free_mib * MIB


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_change_of_a_set_makes_it_fit_while_engines_are_loaded_beside_the_others(heavy, images, order):
    paths = [(images, heavy)[place] for place in order]
    whole = plan_of(paths, 8000, kind="jetson")
    free_mib = (whole.ordered_bytes >> 20) - 40
    found = plan_of(paths, free_mib, kind="jetson")
    assert (found.fits, found.ordered_bytes > free_mib * MIB) == (False, True)
    name, _, what = found.change.what.partition(": ")
    side = int(re.search(r"sides of at most (\d+), and make larger images in tiles", what)[1])
    assert name == str(images)  # both are called convolutions
    bundles = [read_bundle(path, "tensorrt") for path in paths]
    usages = [memory.usage(one, Ask(tile=side) if one.path == str(images) else Ask()) for one in bundles]
    runtime = max(one.runtime.size_bytes for one in found.bundles)
    assert runtime + memory.together(usages) == found.change.size_bytes <= free_mib * MIB


def test_a_context_of_no_use_is_the_last_thing_that_is_offered_for_one_and_never_for_a_set(text):
    bundle, budget = read_bundle(text, CPU), 10 * MIB  # room for 10 of 64 tokens

    def measure(ask):
        return ask.context * MIB

    assert cheapest_change(bundle, Ask(), budget, measure, base=budget).what == "--context 10"
    assert cheapest_option(bundle, Ask(), budget, measure) is None
    assert cheapest_option(bundle, Ask(), 2 * budget, measure).what == "--context 20"


def test_a_set_of_which_each_is_too_large_takes_both_changes(images):
    found = plan_of([images, images], 400, Ask(height=512, width=512))
    assert found.change.what.startswith("each as said above, and load one after the other")
    assert found.change.size_bytes == found.bundles[0].change.size_bytes <= 400 * MIB


def test_a_card_counts_only_what_lies_on_it(images):
    card = plan_of([images], 4000, kind="gpu", unified=False)
    shared = plan_of([images], 4000, kind="jetson")
    assert card.target.backend == shared.target.backend == "tensorrt"
    assert {part.name for part in card.bundles[0].usage.parts} == {"weights", "activations"}
    assert shared.bundles[0].size_bytes > card.bundles[0].size_bytes + 300 * MIB  # the context and the libraries


def test_a_slower_mode_has_lower_bounds(images):
    fast, slow = (target(device(4000), mode=mode) for mode in (None, "7W"))
    speeds = [plan([read_bundle(images, CPU)], chosen, Ask()).bundles[0].roofs[0].per_s for chosen in (fast, slow)]
    assert speeds[0] == pytest.approx(2 * speeds[1])


def test_names_that_nobody_has_are_told():
    with pytest.raises(UnknownNameError, match="device"):
        target_of("jetson-orin-nan", None, None)
    with pytest.raises(UnknownNameError, match="power mode"):
        target_of("jetson-orin-nano-8gb", "99W", None)
    with pytest.raises(UnknownNameError, match="backend"):
        target_of("jetson-orin-nano-8gb", None, "tensorflow")


@pytest.mark.parametrize("width", [60, 80, 128])
def test_no_line_is_longer_than_the_terminal(images, text, width):
    said = lines(plan_of([images, text], 400, Ask(height=512, width=512)), width)
    assert max(map(len, said)) <= width
    assert any("DOES NOT FIT" in line for line in said)
