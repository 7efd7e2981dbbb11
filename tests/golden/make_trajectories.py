"""Write golden/trajectories.npz: 50 steps of torch's and timm's optimizers and rates.

Made with torch 2.13.0, timm 1.0.31 and NumPy 2.4.6. Run from the folder `tests` in
an environment with torch, torchvision, timm and pytest:

    PYTHONPATH=. python golden/make_trajectories.py

Every optimizer starts from the same weights and gets the same gradients, which are
those of a logistic regression along the path of plain descent, magnified by turns so
that LAMB's clip acts at some steps and not at others.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_peers import import_timm

import_timm()
from timm.optim import Lamb  # noqa: E402 (torchvision has to be imported first)
from timm.scheduler import CosineLRScheduler  # noqa: E402

STEPS = 50
EPOCH = 5  # steps, where something counts epochs
SHAPES = {
    "conv/kernel": (3, 3, 2, 4),
    "fc/kernel": (4, 3),
    "fc/bias": (3,),
    "bn/gamma": (4,),
    "asleep/kernel": (2, 3),  # starts at zero and has no gradient for ten steps
}
DECAY = {name: 0.05 if name.endswith("kernel") else 0.0 for name in SHAPES}
# Multiples of the rate by layer decay, as stem, head, head, a block's and the stem's.
SCALES = dict(zip(SHAPES, (0.5625, 1.0, 1.0, 0.75, 0.5625), strict=True))
OTHER_LAMB: Any = {"betas": (0.8, 0.99), "eps": 1e-3, "max_grad_norm": None}
Arrays = dict[str, Any]


def start() -> Arrays:
    """Weights to start from."""
    draw = np.random.default_rng(1)
    weights = {n: draw.normal(0, 0.5, s).astype(np.float32) for n, s in SHAPES.items()}
    weights["bn/gamma"][:] = 1
    weights["asleep/kernel"][:] = 0
    return weights


def logistic_gradients() -> list[Arrays]:
    """Gradients of 50 batches, each `{name: array}`."""
    draw = np.random.default_rng(2)
    weights = {n: torch.tensor(v, requires_grad=True) for n, v in start().items()}
    gradients = []
    for step in range(STEPS):
        pixels = torch.tensor(draw.normal(size=(16, 2, 3, 3)), dtype=torch.float32)
        labels = torch.tensor(draw.integers(0, 3, 16))
        features = torch.einsum("nchw,hwco->no", pixels, weights["conv/kernel"])
        logits = torch.relu(features * weights["bn/gamma"]) @ weights["fc/kernel"]
        logits = logits + weights["fc/bias"]
        if step >= 10:
            logits = logits + pixels[:, :, 0, 0] @ weights["asleep/kernel"]
        loss = torch.nn.functional.cross_entropy(logits, labels)
        slopes = torch.autograd.grad(
            loss, list(weights.values()), allow_unused=True, materialize_grads=True
        )
        scale = (0.1, 1.0, 4.0)[step // 4 % 3]
        gradients.append(
            {n: scale * s.numpy() for n, s in zip(weights, slopes, strict=True)}
        )
        with torch.no_grad():
            for weight, slope in zip(weights.values(), slopes, strict=True):
                weight -= 0.1 * slope
    return gradients


def rates() -> Any:
    """A rate that rises, falls smoothly and falls at once."""
    step = np.arange(STEPS)
    rate = 0.05 * np.minimum(1, (step + 1) / 8) * (1 + np.cos(np.pi * step / STEPS))
    return np.where(step >= 30, 0.1 * rate, rate)


def torch_path(make: Any, scales: Mapping[str, float] | None = None) -> list[Arrays]:
    """Weights after each step of a torch optimizer, `make(groups)`.

    `scales` are multiples of the learning rate, as those of timm's layer decay.
    """
    scales = scales or dict.fromkeys(SHAPES, 1.0)
    weights = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in start().items()}
    kinds = sorted({(DECAY[n], scales[n]) for n in SHAPES}, reverse=True)
    groups = [
        {
            "params": [w for n, w in weights.items() if (DECAY[n], scales[n]) == kind],
            "weight_decay": kind[0],
            "lr_scale": kind[1],
        }
        for kind in kinds
    ]
    optimizer = make(groups)
    path = []
    for gradient, rate in zip(logistic_gradients(), rates(), strict=True):
        for name, weight in weights.items():
            weight.grad = torch.tensor(gradient[name])
        for group in optimizer.param_groups:
            # As timm/scheduler/scheduler.py does.
            group["lr"] = float(rate) * group["lr_scale"]
        optimizer.step()
        path.append({n: w.detach().numpy().copy() for n, w in weights.items()})
    return path


def caffe_path(nesterov: bool) -> list[Arrays]:
    """The same of Caffe's solvers (sgd_solver.cpp, nesterov_solver.cpp) by hand."""
    weights, path = start(), []
    history = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for gradient, rate in zip(logistic_gradients(), rates(), strict=True):
        for name, weight in weights.items():
            slope = np.float32(rate) * (gradient[name] + DECAY[name] * weight)
            before = history[name]
            history[name] = 0.9 * before + slope
            update = 1.9 * history[name] - 0.9 * before if nesterov else history[name]
            weights[name] = (weight - update).astype(np.float32)
        path.append(dict(weights))
    return path


def average_path(weights: list[Arrays]) -> list[Arrays]:
    """torchvision's average along a path: every 2nd step, one epoch of warm-up.

    The average, its two calls and the reset are those of torchvision's
    `references/classification` (utils.py: ExponentialMovingAverage; train.py).
    """
    net = torch.nn.Module()
    for name in SHAPES:
        key, value = name.replace("/", "_"), torch.zeros(SHAPES[name])
        if name == "bn/gamma":  # stands for a statistic
            net.register_buffer(key, value)
        else:
            net.register_parameter(key, torch.nn.Parameter(value))
    alpha = min(1.0, (1 - 0.999) * 1024 * 2 / 10)
    average = torch.optim.swa_utils.AveragedModel(
        net,
        avg_fn=lambda mean, new, _: (1 - alpha) * mean + (1 - (1 - alpha)) * new,
        use_buffers=True,
    )
    path = []
    for step, now in enumerate(weights):
        state = {n.replace("/", "_"): torch.tensor(v) for n, v in now.items()}
        net.load_state_dict(state)
        if step % EPOCH % 2 == 0:
            average.update_parameters(net)
            if step // EPOCH < 1:
                average.n_averaged.fill_(0)
        mean = average.module.state_dict()
        path.append({n: mean[n.replace("/", "_")].numpy().copy() for n in SHAPES})
    return path


def idle_sgd() -> Any:
    """An optimizer of rate 0.5 for schedulers to turn."""
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


def torch_rates(make: Any) -> list[float]:
    """Rates of 50 epochs of a torch scheduler: `make(schedulers, optimizer)`."""
    optimizer, found = idle_sgd(), []
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def warm_cosine(schedulers: Any, optimizer: Any) -> Any:
    """torchvision's warm-up and cosine."""
    warm = schedulers.LinearLR(optimizer, start_factor=0.01, total_iters=EPOCH)
    cosine = schedulers.CosineAnnealingLR(optimizer, STEPS - EPOCH, eta_min=0.002)
    return schedulers.SequentialLR(optimizer, [warm, cosine], [EPOCH])


def timm_rates(prefix: bool, per_epoch: bool) -> list[float]:
    """Rates of timm's cosine at times 0 to 54, five of them behind its end."""
    optimizer, found = idle_sgd(), []
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=STEPS - EPOCH if prefix else STEPS,
        lr_min=1e-5,
        warmup_t=EPOCH,
        warmup_lr_init=1e-6,
        warmup_prefix=prefix,
        t_in_epochs=per_epoch,
    )
    for time in range(STEPS + 5):
        (scheduler.step if per_epoch else scheduler.step_update)(time)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def stacked(label: str, path: list[Arrays]) -> Arrays:
    """`{label/name: (50, ...)}` of a path."""
    return {f"{label}/{n}": np.stack([at[n] for at in path]) for n in SHAPES}


def main() -> None:
    """Write the file."""
    norms = [
        float(np.sqrt(sum((g**2).sum() for g in at.values())))
        for at in logistic_gradients()
    ]
    print("gradients longer than 1:", sum(norm > 1 for norm in norms), "of", STEPS)
    sgd = torch_path(lambda g: torch.optim.SGD(g, momentum=0.9))
    golden: Arrays = {
        **{f"start/{name}": value for name, value in start().items()},
        **stacked("gradients", logistic_gradients()),
        "rates": rates(),
        **stacked("sgd", sgd),
        **stacked(
            "sgd-nesterov",
            torch_path(lambda g: torch.optim.SGD(g, momentum=0.9, nesterov=True)),
        ),
        **stacked("caffe", caffe_path(nesterov=False)),
        **stacked("caffe-nesterov", caffe_path(nesterov=True)),
        **stacked("lamb", torch_path(Lamb)),
        **stacked("lamb-other", torch_path(lambda g: Lamb(g, **OTHER_LAMB))),
        **stacked("adam", torch_path(torch.optim.Adam)),
        **stacked("adamw", torch_path(torch.optim.AdamW)),
        **stacked("adamw-layers", torch_path(torch.optim.AdamW, SCALES)),
        **stacked("average", average_path(sgd)),
        "schedule/torchvision": torch_rates(warm_cosine),
        "schedule/multistep": torch_rates(
            lambda schedulers, optimizer: schedulers.MultiStepLR(optimizer, [25, 29])
        ),
        "schedule/timm": timm_rates(prefix=False, per_epoch=True),
        "schedule/timm-prefix": timm_rates(prefix=True, per_epoch=True),
        "schedule/timm-updates": timm_rates(prefix=False, per_epoch=False),
    }
    file = Path(__file__).parent / "trajectories.npz"
    np.savez_compressed(file, **golden)
    print(file.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
