"""Solver prototxts: defaults as caffe.proto has them, old fields, nets and states, and one line for whatever cannot be meant."""

import re

import pytest

from caffe_weights import parse_prototxt
from repro.caffe.proto import typed
from repro.caffe.solver_parameter import read_solver

GOOD = 'net: "net.prototxt"\nbase_lr: 0.01\nlr_policy: "step"\ngamma: 0.1\nstepsize: 10\nmax_iter: 20\n'


def read(tmp_path, text, **defines):
    path = tmp_path / "solver.prototxt"
    path.write_text(text)
    return read_solver(path, defines)


def test_defaults_are_caffe_protos(tmp_path):
    solver = read(tmp_path, 'net: "n" lr_policy: "fixed"')
    param = solver.parameter
    found = {
        name: getattr(param, name) for name in ("iter_size", "average_loss", "test_interval", "display", "snapshot")
    }
    assert found == {"iter_size": 1, "average_loss": 1, "test_interval": 0, "display": 0, "snapshot": 0}
    assert (param.clip_gradients, param.regularization_type, param.random_seed) == (-1, "L2", -1)
    assert param.test_initialization
    assert param.snapshot_after_train
    assert (param.snapshot_format, param.solver_mode, solver.type) == ("BINARYPROTO", "GPU", "SGD")
    assert (param.delta, param.momentum2, param.rms_decay) == pytest.approx((1e-8, 0.999, 0.99))
    assert solver.tests == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "SGD"),
        ('type: "Adam" momentum: 0.9', "Adam"),
        ("solver_type: NESTEROV", "Nesterov"),
        ("solver_type: ADAGRAD", "AdaGrad"),
        ("solver_type: ADADELTA", "AdaDelta"),
    ],
)
def test_types_by_the_new_field_and_the_old(text, kind, tmp_path):
    assert read(tmp_path, GOOD + text).type == kind


def test_words_may_be_given_by_their_numbers(tmp_path):
    found = [read(tmp_path, f"{GOOD}solver_mode: {mode}").parameter.solver_mode for mode in (0, 1)]
    assert found == ["CPU", "GPU"]
    with pytest.raises(ValueError, match="solver_mode: must be one of CPU, GPU; got 2; correct the prototxt"):
        read(tmp_path, f"{GOOD}solver_mode: 2")
    hinge = typed(parse_prototxt("norm: 2", "net"), "HingeLossParameter", "net")  # counted from 1
    assert hinge.norm == "L2"


def test_variables_are_filled_in(tmp_path):
    text = 'train_net: "${EXP}/config/${NET_ID}/train_${TRAIN_SET}.prototxt" lr_policy: "fixed" max_iter: ${STEPS}'
    solver = read(tmp_path, text, EXP="voc12", NET_ID="vgg", TRAIN_SET="aug", STEPS="7")
    assert solver.train.net == "voc12/config/vgg/train_aug.prototxt"
    assert solver.parameter.max_iter == 7


def test_nets_and_their_states(tmp_path):
    text = GOOD + (
        'test_net: "a" test_net_param { name: "b" } test_iter: 1 test_iter: 2 test_iter: 3 test_interval: 5\n'
        'train_state { stage: "x" level: 2 }\n'
        'test_state { } test_state { stage: "y" stage: "z" } test_state { phase: TRAIN level: 1 }'
    )
    solver = read(tmp_path, text)
    assert (solver.train.net, solver.train.level, solver.train.stages) == ("net.prototxt", 2, ("x",))
    assert [source.words for source in solver.tests] == ["test_net_param", "test_net file: a", "net file: net.prototxt"]
    states = [(source.phase, source.level, source.stages) for source in solver.tests]
    assert states == [(None, None, ()), (None, None, ("y", "z")), ("TRAIN", 1, ())]
    assert solver.tests[0].net == {"name": ["b"]}


BAD = {
    "base_ir: 0.1": "line 7: a field of SolverParameter must be one of Caffe's; got 'base_ir'; did you mean base_lr?",
    "base_lr: 0.2": "line 7: SolverParameter.base_lr must be given once; got 2 values; keep one",
    "momentum: inf": "line 7: SolverParameter.momentum: must be a finite float32; got inf; correct the prototxt",
    "momentum: 1e39": "line 7: SolverParameter.momentum: must be a finite float32; got 1e+39",
    "display: -1": "line 7: SolverParameter.display must be at least 0; got -1; 0 stands for never",
    "snapshot: -5": "line 7: SolverParameter.snapshot must be at least 0; got -5",
    "test_interval: -1": "line 7: SolverParameter.test_interval must be at least 0; got -1",
    "iter_size: 0": "line 7: SolverParameter.iter_size must be at least 1; got 0; correct it",
    "iter_size: 10000000000": "SolverParameter.iter_size: must be a whole number from -2147483648 to 2147483647",
    "average_loss: 0": "line 7: SolverParameter.average_loss must be at least 1; got 0",
    "device_id: -1": "line 7: SolverParameter.device_id must be at least 0; got -1",
    "momentum: true": "SolverParameter.momentum: must be a float; got True",
    "snapshot_prefix: x": "SolverParameter.snapshot_prefix: must be a quoted string; got 'x'",
    "solver_mode: TPU": "SolverParameter.solver_mode: must be one of CPU, GPU; got 'TPU'",
    "snapshot_diff: true": "line 7: SolverParameter.snapshot_diff must be false: gradients are not snapshot; got True",
    'type: "LARS"': "line 7: SolverParameter.type must be one of SGD, Nesterov, AdaGrad, RMSProp, AdaDelta, Adam; got LARS",
    'type: "Adam" solver_type: SGD': "line 7: SolverParameter.solver_type must not stand beside type; got both; keep type",
    'regularization_type: "L3"': 'line 7: SolverParameter.regularization_type must be "L1" or "L2"; got L3; choose one',
    'type: "AdaGrad" momentum: 0.9': "SolverParameter.momentum must not be used with AdaGrad; got 0.8999",
    'type: "RMSProp" rms_decay: 1': "SolverParameter.rms_decay must lie in 0 .. 1, without 1; got 1",
    'type: "Adam" momentum: 1': "SolverParameter.momentum must lie in 0 .. 1, without 1, for Adam; got 1",
    'train_net: "t"': "SolverParameter.train_net must name the train net, or one of net_param, train_net, train_net_param instead "
    "of it, and only one; got net, train_net; name one",
    'net_param: "t"': "SolverParameter.net_param must be a message, { ... }; got a plain value",
    "train_net_param { } train_net_param { }": "SolverParameter.train_net_param must be given once; got 2 of them",
    'test_net: "a" test_net: "b" test_iter: 1': "SolverParameter.test_iter must be given for each of 2 test nets; got 1 values",
    "test_iter: 1": "SolverParameter.test_interval must be above 0 where there are test nets; got 0",
    "test_iter: -1 test_interval: 1": "SolverParameter.test_iter must be at least 0; got [-1]",
    "test_iter: 1 test_interval: 1 test_state { } test_state { }": "SolverParameter.test_state must be left out, or be given for each of 1",
    "snapshot: 1 }": "a field must read `name: value` or `name { ... }`; got '}'",
    "max_lter: ${N}": "line 7: ${N} must have a value; got none (give --define N=VALUE)",
}


@pytest.mark.parametrize("text", BAD)
def test_one_line_for_what_cannot_be_meant(text, tmp_path):
    with pytest.raises(ValueError, match=re.escape(BAD[text])) as failure:
        read(tmp_path, GOOD + text)
    assert str(failure.value).startswith(f"{tmp_path / 'solver.prototxt'}: ")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_iter: 20", "max_iter: 1000000000000000000", "SolverParameter.max_iter: must be a whole number"),
        ("max_iter: 20", "max_iter: 1e18", "SolverParameter.max_iter: must be a whole number"),
        ("max_iter: 20", "max_iter: -1", "line 6: SolverParameter.max_iter must be at least 0; got -1; correct it"),
        ("stepsize: 10", "", "SolverParameter.stepsize must be above 0 for lr_policy step; got 0; correct it"),
        ("gamma: 0.1", "gamma: -1", "line 4: SolverParameter.gamma must be at least 0; got -1.0; correct it"),
        (
            '"step"',
            '"plateau"',
            "line 3: SolverParameter.lr_policy must be one of fixed, step, exp, inv, multistep, poly",
        ),
        ('lr_policy: "step"', "", "line 1: SolverParameter.lr_policy must be one of fixed"),
        ('net: "net.prototxt"', "", "and only one; got none; name one"),
        ('net: "net.prototxt"', 'train_net: "t" test_net: "a"', "must be given for each of 1 test nets; got 0 values"),
    ],
)
def test_one_line_for_what_is_missing_or_wrong(old, new, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path, GOOD.replace(old, new))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.prototxt"))):
        read_solver(tmp_path / "none.prototxt")
