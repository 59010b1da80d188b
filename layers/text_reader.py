"""From what a frozen LLM made of a window's texts to what they add to its forecast.

Two parts, added: maps that are solved in closed form (`layers.text_fitting`), for a variable where that
gains and zeros elsewhere, and a small trained one behind a gate, whose last weights begin at zero. So before
the first step it is the solved part alone, and where nothing was gained nothing at all.

A text's share follows from a few numbers that are read from its state, and from its age.

Shape legend: B windows, M variables forecast, V variables that see texts of their own (1 where all see the
same), C texts of a window, D numbers of a text, r numbers read from it, A kinds of age, H horizon.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layers.start_fitting import NO_EVIDENCE, Evidence

WIDTH = 16
"""Numbers that the trained part reads from a text."""
SAID = 12
"""Variables that are told of in a line each."""
EXACT_AGES = 16
"""Rows up to which each age is a kind of its own; from there on kinds grow by a quarter."""


def age_edges(horizon: int) -> list[int]:
    """The least age of each kind [A], up to twice the horizon; the last kind has no end."""
    edges = list(range(EXACT_AGES))
    while edges[-1] < 2 * horizon:
        edges.append(edges[-1] + max(1, edges[-1] // 4))
    return edges


def likeness(states: Tensor, landmarks: Tensor, sharpness: Tensor | float) -> Tensor:
    """Of standardised states [..., D] to landmarks [U, D]: [..., U], by a Gaussian of their distance.

    exp(-sharpness * the mean squared difference); with a sharpness of 0 the mean product, which is linear.
    """
    width = max(1, states.shape[-1])
    product = states @ landmarks.T
    distance = states.square().sum(-1, keepdim=True) + landmarks.square().sum(-1) - 2 * product
    gaussian = torch.exp(-sharpness * distance.clamp(min=0) / width)
    return torch.where(torch.as_tensor(sharpness, device=states.device) > 0, gaussian, product / width)


class TextSolution(NamedTuple):
    """What was solved for a variable."""

    directions: Tensor
    """[U, r], from a state's likenesses to the landmarks to what is read."""
    maps: Tensor
    """[A, 1 + r, H], from 1 and what was read to the correction, by kind of age."""


class TextReader(nn.Module):
    """States of a window's texts, and their ages, to a correction [B, H, M] in standardised units."""

    state_mean: Tensor
    state_scale: Tensor
    landmarks: Tensor
    sharpness: Tensor
    directions: Tensor
    maps: Tensor
    decided: Tensor
    evidence: Tensor
    edges: Tensor

    def __init__(self, *, width: int, variables: int, horizon: int) -> None:
        """Without effect.

        Args:
            width: D.
            variables: M.
            horizon: H.
        """
        super().__init__()
        edges = age_edges(horizon)
        self.variables, self.horizon, self.kinds = variables, horizon, len(edges)
        self.register_buffer("edges", torch.tensor(edges), persistent=False)
        self.register_buffer("state_mean", torch.zeros(width))
        self.register_buffer("state_scale", torch.ones(width))
        self.register_buffer("landmarks", torch.zeros(0, width))
        self.register_buffer("sharpness", torch.zeros(()))
        self.register_buffer("directions", torch.zeros(variables, 0, 1))
        self.register_buffer("maps", torch.zeros(variables, len(edges), 2, horizon))
        self.register_buffer("decided", torch.zeros(variables, dtype=torch.bool))
        self.register_buffer("evidence", torch.zeros(variables, 2, 2))
        self.narrow = nn.Linear(width, WIDTH)
        self.by_age = nn.Embedding(len(edges), WIDTH)
        self.by_variable = nn.Parameter(torch.ones(variables, WIDTH))
        self.gate = nn.Linear(WIDTH, 1)
        self.widen = nn.Linear(WIDTH, horizon, bias=False)
        nn.init.zeros_(self.by_age.weight)
        nn.init.zeros_(self.widen.weight)

    def forward(self, text: Tensor, age: Tensor, variable: Tensor | None = None) -> Tensor:
        """The correction [B, H, M].

        Args:
            text: states [B, V, C, D].
            age: [B, V, C] int64, -1 where there is no text.
            variable: index of each variable that is forecast, [B, M]; by default 0 to M - 1.
        """
        if variable is None:
            variable = torch.arange(self.variables, device=age.device).expand(len(age), -1)
        with torch.autocast(text.device.type, enabled=False):
            states = (text.float() - self.state_mean) / self.state_scale
            there = (age >= 0).unsqueeze(-1)  # [B, V, C, 1]
            kind = self.kind_of(age)
            found = self.solved(states, there, kind, variable) + self.trained(states, there, kind, variable)
        return found.transpose(1, 2)

    def kind_of(self, age: Tensor) -> Tensor:
        """Which kind of age each is, 0 to A - 1; 0 also where there is no text."""
        return torch.bucketize(age, self.edges, right=True).sub(1).clamp(min=0)

    def solved(self, states: Tensor, there: Tensor, kind: Tensor, variable: Tensor) -> Tensor:
        """The part in closed form, [B, M, H]."""
        alike = likeness(states, self.landmarks, self.sharpness)  # [B, V, C, U]
        if alike.shape[1] == 1:
            every = torch.einsum("bcu,mur->bmcr", alike[:, 0], self.directions)
            read = every[torch.arange(len(every), device=every.device)[:, None], variable]
        else:
            read = torch.einsum("bmcu,bmur->bmcr", alike, self.directions[variable])
        read = torch.cat([torch.ones_like(read[..., :1]), read], dim=-1) * there  # [B, M, C, 1 + r]
        own = self.maps[variable[:, :, None], kind.expand(read.shape[:3])]  # [B, M, C, 1 + r, H]
        return torch.einsum("bmcr,bmcrh->bmh", read, own)

    def trained(self, states: Tensor, there: Tensor, kind: Tensor, variable: Tensor) -> Tensor:
        """The part that learns by steps, [B, M, H]."""
        read = torch.tanh(self.narrow(states)) * (1 + self.by_age(kind)) * there  # [B, V, C, width]
        pooled = read.sum(dim=2) * self.by_variable[variable]  # [B, M, width]
        return torch.sigmoid(self.gate(pooled)) * self.widen(pooled)

    def compare_with(self, landmarks: Tensor, sharpness: float) -> None:
        """Read states by their likeness to these [U, D], standardised; nothing is read by it yet."""
        self.landmarks = landmarks.to(self.landmarks)
        self.sharpness.fill_(sharpness)
        self.directions = self.directions.new_zeros(self.variables, len(landmarks), 1)
        self.maps = self.maps.new_zeros(self.variables, self.kinds, 2, self.horizon)

    @torch.no_grad()
    def take(self, variable: int, solution: TextSolution) -> None:
        """What was solved for a variable; zeros where it gained nothing."""
        rank = solution.directions.shape[1]
        if rank > self.directions.shape[2]:  # others read less: their further numbers are zeros
            more = rank - self.directions.shape[2]
            self.directions = nn.functional.pad(self.directions, (0, more))
            self.maps = nn.functional.pad(self.maps, (0, 0, 0, more))
        self.directions[variable], self.maps[variable] = 0, 0
        self.directions[variable, :, :rank] = solution.directions.to(self.directions)
        self.maps[variable, :, : 1 + rank] = solution.maps.to(self.maps)

    def leave_out(self, variable: int) -> None:
        """Read no text for this variable by what was solved."""
        self.directions[variable], self.maps[variable] = 0, 0

    def lines(self) -> list[str]:
        """For which variables texts are in, and by which evidence; of many variables the first."""
        lines = []
        for place, (own, is_in) in enumerate(self._decisions()):
            changes = ", ".join(
                f"{where} {one.text}"
                for where, one in zip(("validation", "folds over wordings"), own, strict=True)
            )
            which = f"variable {place + 1} of {self.variables}"
            lines.append(f"texts: {'in' if is_in else 'out'} for {which}; squared errors change by {changes}")
        if len(lines) > SAID:
            lines[SAID:] = [f"texts: in for {int(self.decided.sum())} of {self.variables} variables"]
        return lines

    def facts(self) -> list[dict[str, Any]]:
        """What was decided for each variable, and by which evidence, as plain values."""
        by = ("validation", "folds")
        return [
            {
                "in": is_in,
                **{w: None if one == NO_EVIDENCE else one._asdict() for w, one in zip(by, own, strict=True)},
            }
            for own, is_in in self._decisions()
        ]

    def _decisions(self) -> list[tuple[list[Evidence], bool]]:
        """Of each variable: by validation and by folds, and whether texts are in."""
        evidence = [[Evidence(*one) for one in own] for own in self.evidence.tolist()]
        return list(zip(evidence, self.decided.tolist(), strict=True))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take maps of any r, from any number of landmarks."""
        for name in ("landmarks", "directions", "maps"):
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, getattr(self, name).new_zeros(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
