"""Render scenes of the demo world to images, vectorised over the batch.

Every outline is a signed distance, so its edge is anti-aliased by the distance itself; every surface has a
normal, so it is lit by the background's sun; every solid casts a soft shadow where that sun throws it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rapm_cli.bases.demo.world import SHAPES, Scene, Solid

IMAGE_PX = 128
RADII = {"small": 0.105, "large": 0.175}  # fraction of the image side
PAINT = {
    "red": (0.86, 0.12, 0.12),
    "orange": (0.98, 0.50, 0.06),
    "yellow": (0.97, 0.87, 0.13),
    "green": (0.13, 0.62, 0.20),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.13, 0.25, 0.85),
    "purple": (0.55, 0.16, 0.70),
    "white": (0.96, 0.96, 0.96),
}


@dataclass(frozen=True)
class Light:
    """Colours (RGB in [0, 1]) and sun of a background."""

    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    far_ground: tuple[float, float, float]
    near_ground: tuple[float, float, float]
    tint: tuple[float, float, float]
    sun: tuple[float, float, float]  # direction of the sun: right, down, towards the viewer
    ambient: float
    disc: tuple[float, float] | None  # position of the sun in the image, if visible
    shadow: float  # darkness of a cast shadow


LIGHTS = {
    "dawn": Light(
        (0.55, 0.62, 0.86), (1.0, 0.80, 0.66), (0.74, 0.62, 0.62), (0.56, 0.47, 0.52),
        (1.0, 0.95, 0.90), (-0.70, -0.45, 0.55), 0.45, (0.14, 0.40), 0.45,
    ),
    "noon": Light(
        (0.25, 0.52, 0.92), (0.74, 0.88, 1.0), (0.52, 0.70, 0.36), (0.34, 0.56, 0.24),
        (1.0, 1.0, 1.0), (-0.20, -0.85, 0.50), 0.45, None, 0.50,
    ),
    "dusk": Light(
        (0.13, 0.11, 0.30), (0.85, 0.38, 0.28), (0.32, 0.22, 0.26), (0.17, 0.13, 0.18),
        (0.98, 0.90, 0.88), (0.70, -0.45, 0.55), 0.48, (0.86, 0.42), 0.55,
    ),
    "snow": Light(
        (0.66, 0.71, 0.78), (0.82, 0.85, 0.89), (0.88, 0.90, 0.94), (0.97, 0.98, 1.0),
        (0.97, 0.98, 1.0), (0.25, -0.70, 0.65), 0.55, None, 0.30,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Placed:
    """The solids of all images of a batch; solid k belongs to image number `image[k]`."""

    solids: list[Solid]
    image: Tensor  # (K,) int64
    centre: Tensor  # (K, 2) x and y, fractions of the side
    radius: Tensor  # (K,)
    floor: Tensor  # (K,) y of the ground under the solid
    turn: Tensor  # (K,) radians about the vertical, for cubes


def draw(scenes: Sequence[Scene], generator: torch.Generator, side_px: int = IMAGE_PX) -> Tensor:
    """Render images of scenes.

    Args:
        scenes: B scenes.
        generator: CPU generator for places, sizes within their class, horizons and hills.
        side_px: Width and height of the images in pixels.

    Returns:
        (B, 3, side_px, side_px) float32 RGB in [0, 1].
    """
    return draw_with_solids(scenes, generator, side_px)[0]


def draw_with_solids(
    scenes: Sequence[Scene], generator: torch.Generator, side_px: int = IMAGE_PX
) -> tuple[Tensor, Tensor]:
    """Render images of scenes, and the share of each pixel that a solid covers.

    Args:
        scenes: As in `draw`.
        generator: As in `draw`.
        side_px: As in `draw`.

    Returns:
        The images of `draw`, and (B, 1, side_px, side_px) float32 shares in [0, 1].
    """
    grid = (torch.arange(side_px) + 0.5) / side_px
    y, x = torch.meshgrid(grid, grid, indexing="ij")  # (H, W) each
    placed = _place(scenes, generator)
    image = _landscape(scenes, x, y, generator)
    image = image * (1 - _shadows(scenes, placed, x, y))
    layers = _solids(scenes, placed, x, y, side_px)  # (K, 4, H, W)
    solid = torch.zeros(len(scenes), 1, side_px, side_px)
    for k, owner in enumerate(placed.image.tolist()):  # two solids of an image never overlap
        image[owner] += (layers[k, :3] - image[owner]) * layers[k, 3]
        solid[owner] += layers[k, 3:]
    return image.clamp(0, 1), solid


def _place(scenes: Sequence[Scene], generator: torch.Generator) -> _Placed:
    """Place the solids; the canonical first one is on the left, or above."""
    noise = torch.rand(len(scenes), 2, 5, generator=generator) * 2 - 1  # x, y, size, turn, spare; in [-1, 1]
    solids, rows = [], []
    for index, scene in enumerate(scenes):
        place = scene.canonical()
        for slot, solid in enumerate(s for s in (place.first, place.second) if s):
            dx, dy, dr, turn, _ = noise[index, slot].tolist()
            radius = RADII[solid.size] * (1 + 0.06 * dr)
            if place.layout == "alone":
                x, floor = 0.5 + 0.15 * dx, 0.80 + 0.05 * dy
                y = floor - radius
            elif place.layout == "side by side":
                x, floor = (0.27, 0.73)[slot] + 0.04 * dx, 0.79 + 0.05 * dy
                y = floor - radius
            else:
                x, floor = 0.5 + 0.09 * dx, 0.90 + 0.03 * float(noise[index, 1, 1])
                y = (0.25 + 0.03 * dy) if slot == 0 else floor - radius
            solids.append(solid)
            rows.append((index, x, y, radius, floor, math.radians(45 + 25 * turn)))
    table = torch.tensor(rows)
    return _Placed(solids, table[:, 0].long(), table[:, 1:3], table[:, 3], table[:, 4], table[:, 5])


def _table(scenes: Sequence[Scene], field: str) -> Tensor:
    """Collect one field of each scene's light: (B, 3, 1, 1) for a colour, (B, 1, 1) for a number."""
    values = torch.tensor([getattr(LIGHTS[scene.background], field) for scene in scenes])
    return values.reshape(*values.shape, 1, 1)


def _landscape(scenes: Sequence[Scene], x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Render (B, 3, H, W) sky, sun and rolling ground."""
    jitter = torch.rand(len(scenes), 3, 1, 1, generator=generator)
    line = 0.54 + 0.06 * (jitter[:, 0] - 0.5)
    hills = 0.018 * torch.sin(2 * math.pi * (x * (0.8 + 0.6 * jitter[:, 1]) + jitter[:, 2]))
    edge = (line + hills).unsqueeze(1)  # (B, 1, 1, W) after broadcasting over rows
    height = (y / edge).clamp(0, 1)
    sky = torch.lerp(_table(scenes, "zenith"), _table(scenes, "horizon"), height**1.5)
    for index, scene in enumerate(scenes):
        disc = LIGHTS[scene.background].disc
        if disc:
            distance = torch.hypot(x - disc[0], y - disc[1])
            glow = (0.9 * torch.sigmoid((0.045 - distance) * 180) + 0.35 * torch.exp(-distance * 9)).clamp(max=1)
            sky[index] += (torch.tensor([1.0, 0.93, 0.75]).reshape(3, 1, 1) - sky[index]) * glow
    depth = ((y - edge) / (1 - edge)).clamp(0, 1)
    ground = torch.lerp(_table(scenes, "far_ground"), _table(scenes, "near_ground"), depth)
    is_ground = ((y - edge) * y.shape[0] + 0.5).clamp(0, 1)
    return torch.lerp(sky, ground, is_ground)


def _shadows(scenes: Sequence[Scene], placed: _Placed, x: Tensor, y: Tensor) -> Tensor:
    """Render the (B, 1, H, W) share of light that cast shadows remove."""
    sun = torch.tensor([LIGHTS[scene.background].sun for scene in scenes])[placed.image]  # (K, 3)
    height = placed.floor - placed.centre[:, 1]
    reach = -sun[:, 0] / -sun[:, 1]  # length of a shadow per unit of height
    centre_x = placed.centre[:, 0] + reach * height * 0.75
    half_width = placed.radius * (0.95 + 0.45 * reach.abs())
    half_height = placed.radius * 0.26
    soft = 0.25 + 1.2 * (height - placed.radius).clamp(min=0)  # floating solids cast blurred shadows
    u = (x - centre_x.reshape(-1, 1, 1)) / half_width.reshape(-1, 1, 1)
    v = (y - placed.floor.reshape(-1, 1, 1)) / half_height.reshape(-1, 1, 1)
    inside = 1 - torch.hypot(u, v)
    dark = torch.sigmoid(inside * 2.2 / soft.reshape(-1, 1, 1)) * torch.sigmoid(inside * 12 + 6)
    strength = torch.tensor([LIGHTS[scene.background].shadow for scene in scenes])[placed.image]
    lit = torch.ones(len(scenes), *x.shape)
    for k, image in enumerate(placed.image.tolist()):
        lit[image] *= 1 - dark[k] * strength[k]
    return (1 - lit).unsqueeze(1)


def _solids(scenes: Sequence[Scene], placed: _Placed, x: Tensor, y: Tensor, side_px: int) -> Tensor:
    """Render the (K, 4, H, W) lit colour and coverage of each solid."""
    count = len(placed.solids)
    radius = placed.radius.reshape(-1, 1, 1)
    u = (x - placed.centre[:, 0].reshape(-1, 1, 1)) / radius
    v = (y - placed.centre[:, 1].reshape(-1, 1, 1)) / radius
    distance = torch.empty(count, *x.shape)
    normal = torch.empty(count, 3, *x.shape)
    for shape in SHAPES:
        chosen = [k for k, solid in enumerate(placed.solids) if solid.shape == shape]
        if chosen:
            distance[chosen], normal[chosen] = _OUTLINES[shape](u[chosen], v[chosen], placed.turn[chosen])
    lights = [LIGHTS[scenes[image].background] for image in placed.image.tolist()]
    sun = torch.tensor([light.sun for light in lights])
    sun = (sun / sun.norm(dim=1, keepdim=True)).reshape(-1, 3, 1, 1)
    half = sun + torch.tensor([0.0, 0.0, 1.0]).reshape(3, 1, 1)
    half = half / half.norm(dim=1, keepdim=True)
    diffuse = (normal * sun).sum(1, keepdim=True).clamp(min=0)
    gloss = (normal * half).sum(1, keepdim=True).clamp(min=0) ** 28
    ambient = torch.tensor([light.ambient for light in lights]).reshape(-1, 1, 1, 1)
    tint = torch.tensor([light.tint for light in lights]).reshape(-1, 3, 1, 1)
    paint = torch.tensor([PAINT[solid.colour] for solid in placed.solids]).reshape(-1, 3, 1, 1)
    colour = paint * tint * (ambient + (1.05 - ambient) * diffuse) + 0.35 * gloss
    coverage = (0.5 - distance * radius * side_px).clamp(0, 1).unsqueeze(1)
    return torch.cat([colour, coverage], dim=1)


def _sphere(u: Tensor, v: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    rho = torch.hypot(u, v)
    depth = (1 - rho**2).clamp(min=0).sqrt()
    return rho - 1, torch.stack([u, v, depth], dim=1)


def _ring(u: Tensor, v: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    middle, tube = 0.72, 0.28
    rho = torch.hypot(u, v).clamp(min=1e-6)
    across = (rho - middle) / tube
    depth = (1 - across**2).clamp(min=0).sqrt()
    return (across.abs() - 1) * tube, torch.stack([u / rho * across, v / rho * across, depth], dim=1)


def _cone(u: Tensor, v: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    apex, base, half_width, half_height = -1.0, 0.76, 0.86, 0.24
    slope = math.atan2(half_width, base - apex)
    sides = (u.abs() - (v - apex) * math.tan(slope)) * math.cos(slope)
    flank = torch.maximum(sides, v - base)
    foot = (torch.hypot(u / half_width, (v - base) / half_height) - 1) * half_height
    around = (u / ((v - apex) * math.tan(slope)).clamp(min=1e-3)).clamp(-1, 1)
    normal = torch.stack(
        [
            around * math.cos(slope),
            torch.full_like(around, -math.sin(slope)),
            (1 - around**2).sqrt() * math.cos(slope),
        ],
        dim=1,
    )
    return torch.minimum(flank, foot), normal


def _cube(u: Tensor, v: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Project the three visible faces of a cube turned by `turn`, seen slightly from above."""
    half_edge, pitch = 0.60, math.radians(28)

    def project(corner: tuple[int, int, int]) -> Tensor:  # (K, 3): right, down, towards the viewer
        right, down, near = corner
        side = right * turn.cos() + near * turn.sin()
        front = near * turn.cos() - right * turn.sin()
        sign = torch.full_like(side, float(down))
        return torch.stack(
            [side, sign * math.cos(pitch) + front * math.sin(pitch), front * math.cos(pitch) - sign * math.sin(pitch)],
            dim=1,
        )

    faces = (
        ((0, -1, 0), ((-1, -1, -1), (1, -1, -1), (1, -1, 1), (-1, -1, 1))),
        ((0, 0, 1), ((-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1))),
        ((-1, 0, 0), ((-1, -1, -1), (-1, -1, 1), (-1, 1, 1), (-1, 1, -1))),
    )
    distance = torch.full_like(u, math.inf)
    normal = torch.zeros(len(u), 3, *u.shape[1:])
    for direction, corners in faces:
        points = [project(corner)[:, :2] * half_edge for corner in corners]
        face = torch.full_like(u, -math.inf)
        for a, b in zip(points, points[1:] + points[:1], strict=True):  # clockwise on the screen
            edge = b - a
            outward = torch.stack([edge[:, 1], -edge[:, 0]], dim=1) / edge.norm(dim=1, keepdim=True).clamp(min=1e-6)
            du, dv = u - a[:, 0].reshape(-1, 1, 1), v - a[:, 1].reshape(-1, 1, 1)
            face = torch.maximum(face, du * outward[:, 0].reshape(-1, 1, 1) + dv * outward[:, 1].reshape(-1, 1, 1))
        nearest = (face < distance).unsqueeze(1)
        normal = torch.where(nearest, project(direction).reshape(-1, 3, 1, 1), normal)
        distance = torch.minimum(distance, face)
    return distance, normal


_OUTLINES = {"sphere": _sphere, "cube": _cube, "cone": _cone, "ring": _ring}
