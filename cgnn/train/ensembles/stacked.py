"""Networks of one form as one, whose parameters have the members as their first dimension."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from cgnn.model import CrystalGNN
from cgnn.model.conv import BatchNorm


class Stacked:
    """Networks of one form as one: every parameter has the members as its first dimension.

    Buffers that training moves (of batch normalisations) have it as well; tables and scaling are shared.

    Args:
        members: The networks.
    """

    def __init__(self, members: list[CrystalGNN]) -> None:
        self.size = len(members)
        self.template = copy.deepcopy(members[0])
        self.template.may_fuse = False
        self.module = copy.deepcopy(members[0])
        moving = [f"{name}.{key}" for name, norm in _norms(members[0]) for key, _ in norm.named_buffers()]
        self.names = {*moving, *(name for name, _ in members[0].named_parameters())}
        states = [member.state_dict(keep_vars=True) for member in members]
        for name in self.names:
            whole = torch.stack([state[name].detach() for state in states])
            owner, key = _owner(self.module, name)
            if isinstance(getattr(owner, key), nn.Parameter):
                setattr(owner, key, nn.Parameter(whole))
            else:
                setattr(owner, key, whole)

    def matrices(self) -> set[str]:
        """Return the names of parameters that are matrices in one network."""
        return {name for name, parameter in self.template.named_parameters() if parameter.ndim > 1}

    def over(self, function: Callable[..., Any], module: nn.Module, *given: Tensor | None) -> Any:
        """Call a function of one network's tensors for all of them, with tensors (M, ...) of their own beside.

        A dropout mask is the same for all members, as it is for each of them alone.
        """
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        places = {name: 0 if name in self.names else None for name in tensors}
        in_dims = (places, *(None if tensor is None else 0 for tensor in given))
        return vmap(function, in_dims=in_dims, randomness="same")(tensors, *given)

    def outputs(self, module: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return the raw outputs (M, n, outputs) of all members by target name."""
        found: dict[str, Tensor] = self.over(lambda t: functional_call(self.template, t, (batch,)), module)
        return found

    def member(self, module: nn.Module, number: int) -> CrystalGNN:
        """Return one of the networks."""
        alone = copy.deepcopy(self.template)
        alone.may_fuse = True
        state = {name: t[number] if name in self.names else t for name, t in module.state_dict().items()}
        alone.load_state_dict(state)
        return alone


def _norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, BatchNorm)]


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    place, _, key = name.rpartition(".")
    return model.get_submodule(place), key
