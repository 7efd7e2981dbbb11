"""What torchvision's nets answer on the formula's weights, as a dict of arrays."""

from typing import Any

import formula
import numpy as np


def with_formula(model: Any) -> Any:
    """Fill a torch model with the formula's weights."""
    import torch

    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state = {name: formula.weight(name, shape) for name, shape in shapes.items()}
    model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    return model


def answers(model: Any) -> dict[str, Any]:
    """Return logits and samples of stages, and of the weights after a step."""
    found: dict[str, Any] = {}
    for size in formula.SIZES:
        found |= _forward(model, size)
    return found | _step(model)


def _forward(model: Any, size: tuple[int, int]) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {}
    label = f"{size[0]}x{size[1]}"

    def keep(stage: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            value = output.numpy()
            key = f"{label}/{stage}"
            chosen = formula.sample(key, value.size, formula.STAGE_SAMPLES)
            found[key] = value.reshape(-1)[chosen]
            found[f"{key}/largest"] = np.abs(value).max()

        return hook

    model.eval()
    hooks = [
        getattr(model, stage).register_forward_hook(keep(stage))
        for stage in formula.STAGES
    ]
    with torch.no_grad():
        pixels = formula.images(1, *size).transpose(0, 3, 1, 2)
        logits = model(torch.from_numpy(np.ascontiguousarray(pixels)))
        found[f"{label}/logits"] = logits.numpy()[0]
    for hook in hooks:
        hook.remove()
    return found


def _step(model: Any) -> dict[str, Any]:
    import torch

    model.train()
    side = formula.STEP_SIDE
    pixels = formula.images(formula.STEP_IMAGES, side, side).transpose(0, 3, 1, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=formula.STEP_RATE)
    logits = model(torch.from_numpy(np.ascontiguousarray(pixels)))
    labels = torch.arange(formula.STEP_IMAGES) * 7
    torch.nn.functional.cross_entropy(logits, labels).backward()
    optimizer.step()
    return {"step": formula.samples(model.state_dict())}
