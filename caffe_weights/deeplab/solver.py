"""Solver prototxts."""

from collections.abc import Mapping

from caffe_weights.deeplab.spec import quoted

_NUMBER = (int, float)
# The keys of Caffe's SolverParameter that may be given, with their types.
SOLVER_KEYS = {
    "base_lr": _NUMBER,
    "lr_policy": str,
    "gamma": _NUMBER,
    "stepsize": int,
    "power": _NUMBER,
    "max_iter": int,
    "momentum": _NUMBER,
    "weight_decay": _NUMBER,
    "iter_size": int,
    "clip_gradients": _NUMBER,
    "random_seed": int,
    "display": int,
    "snapshot": int,
}
_POLICY_KEYS = {"step": {"gamma", "stepsize"}, "poly": {"power"}, "fixed": set()}


def solver_prototxt(solver: Mapping[str, object], train_net: str, snapshot_prefix: str, mode: str = "GPU") -> str:
    """Writes a solver as prototxt.

    Args:
        solver: SOLVER_KEYS; those that the policy does not use are left out.
        train_net: the training net's file, looked up relative to the folder Caffe is started in.
        snapshot_prefix: of the snapshots' files.
        mode: "GPU" or "CPU".

    Raises:
        ValueError: the policy is unknown, or one of its keys is missing.
    """
    policy = solver["lr_policy"]
    if policy not in _POLICY_KEYS:
        raise ValueError(
            f'solver_prototxt: lr_policy must be "step", "poly" or "fixed"; got {policy!r}; correct solver.lr_policy'
        )
    if missing := sorted(_POLICY_KEYS[policy] - set(solver)):
        raise ValueError(
            f"solver_prototxt: lr_policy {policy!r} must have {', '.join(missing)}; got none; add to solver"
        )
    unused = set().union(*_POLICY_KEYS.values()) - _POLICY_KEYS[policy]
    lines = [f"train_net: {quoted(train_net)}"]
    for key in SOLVER_KEYS:
        value = solver.get(key)
        if value is None or key in unused or (key == "clip_gradients" and value <= 0):  # Caffe clips to 0 if told so
            continue
        lines.append(
            f"{key}: {quoted(value)}"
            if isinstance(value, str)
            else f"{key}: {value:.9g}"
            if isinstance(value, float)
            else f"{key}: {value}"
        )
    lines += [f"snapshot_prefix: {quoted(snapshot_prefix)}", f"solver_mode: {mode}"]
    return "\n".join(lines) + "\n"
