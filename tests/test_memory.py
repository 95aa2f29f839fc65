"""What a run needs at least is known before it starts."""

import pytest
import torch
from tiny import CRF, CRF_KEYS, DT_KEYS, main, run_command, write_protocol

from repro.device import Compute
from repro.models import build
from repro.protocol import load_protocol
from repro.run import memory
from repro.run.cost import layers_of
from repro.run.memory import available_bytes, check_memory, least_bytes
from repro.run.plan import Plan


@pytest.fixture
def settings():
    return load_protocol("table3", ["model.width=0.125"]).row("attention3-extra").settings


def test_maps_are_those_of_the_network(settings):
    network = build(settings["model"], 21, seed=1)
    seen = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: seen.append(output.numel()))
    with torch.no_grad():
        network(torch.zeros(1, 3, 65, 65))
    assert [layer.elements for layer in layers_of(settings, 65)] == seen
    assert len(seen) == 3 * 16 + 2


def test_it_is_no_more_than_what_autograd_keeps(settings):
    small = settings | {
        "transform": settings["transform"] | {"crop_size": 65},
        "solver": settings["solver"] | {"batch_size": 3},
        "test": {"crop_size": 65, "batch_size": 1},
    }
    network = build(settings["model"], 21, seed=1)
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(torch.zeros(3, 3, 65, 65))
    parameters = sum(4 * parameter.numel() for parameter in network.parameters())
    estimate = least_bytes(small) - 3 * parameters
    assert output.logits is not None
    assert 0.3 * sum(kept.values()) < estimate <= sum(kept.values())


def test_the_papers_own_row_fits_where_it_should():
    assert 6 < least_bytes(load_protocol("table3").row("attention3-extra").settings) / 2**30 < 12


def test_a_crf_beside_the_network_is_counted(settings):
    plain, test = least_bytes(settings), settings["test"]
    refined = settings | {"crf": CRF_KEYS}
    one = 4 * (test["batch_size"] + 3) * 21 * test["crop_size"] ** 2
    assert least_bytes(settings, 3) == plain  # no CRF
    tests_alone = refined | {"solver": settings["solver"] | {"max_iter": 0}}
    network = least_bytes(settings | {"solver": settings["solver"] | {"max_iter": 0}})
    assert least_bytes(tests_alone, 3) == network + 3 * one
    assert least_bytes(tests_alone) == max(
        network, network - 4 * 2 * max(layer.elements for layer in layers_of(settings, 513)) + one
    )
    assert 80e6 < one < 100e6


def test_what_does_not_fit_is_refused_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    command = run_command(tmp_path)
    assert (
        main([*command, "--row", "max2", "--set", "solver.batch_size=65536", "--set", "transform.crop_size=8193"]) == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: tiny max2: it must fit into ")
    assert (
        "GiB for solver.batch_size 65536 of transform.crop_size 8193, test.batch_size 2 of test.crop_size 41; lower"
        in line
    )
    assert not (tmp_path / "out").exists()
    write_protocol(tmp_path, CRF)
    assert main([*command, "--row", "max2", "--set", "test.crop_size=8193", "--workers", "1000"]) == 2
    assert capsys.readouterr().err.endswith("for the same gradients; of the CRF --workers 1000 may be fewer\n")
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)  # a system that does not say
    check_memory(Plan([command[0]], ["max2"], [1], ["solver.batch_size=65536"]).jobs, Compute(torch.device("cpu")))


def test_the_machine_says_what_it_has():
    assert available_bytes(torch.device("cpu")) > 2**28


def test_maps_of_fixed_layers_are_not_kept_and_filtered_scores_are():
    """Of DeepLab-MSc's second step less is kept than of its first; a domain transform keeps two maps of the image's size."""
    first, second = (load_protocol("table4").row(row).settings for row in ("largefov", "msc-largefov"))
    assert least_bytes(second) < least_bytes(first) / 2
    with_transform = first | {"model": first["model"] | DT_KEYS}
    maps = 4 * 30 * 2 * 21 * 321**2
    edge = 3 * 4 * (64 + 128 + 256 + 1)  # its parameters, with gradient and momentum
    assert least_bytes(with_transform) == least_bytes(first) + maps + edge
