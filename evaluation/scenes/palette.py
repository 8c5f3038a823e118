"""The words a scene is made of, and the colours they stand for.

Colours are far apart in CIELAB from each other and from every background (a test measures it), so that a caption
about a colour is never a matter of taste.
"""

from __future__ import annotations

from typing import Literal

Shape = Literal["circle", "square", "triangle", "star", "cross", "ring", "heart", "moon"]
Colour = Literal["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
Texture = Literal["plain", "striped", "dotted", "checked"]
Tone = Literal["light", "dark"]
Pattern = Literal["plain", "gradient", "clouds", "grain", "spot"]

SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")
COLOURS: tuple[Colour, ...] = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES: tuple[Texture, ...] = ("plain", "striped", "dotted", "checked")
TONES: tuple[Tone, ...] = ("light", "dark")
PATTERNS: tuple[Pattern, ...] = ("plain", "gradient", "clouds", "grain", "spot")

# sRGB in 0..1.
RGB: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.08, 0.10),
    "orange": (0.98, 0.54, 0.04),
    "yellow": (0.97, 0.88, 0.10),
    "green": (0.10, 0.58, 0.18),
    "cyan": (0.10, 0.80, 0.86),
    "blue": (0.12, 0.24, 0.86),
    "purple": (0.50, 0.14, 0.62),
    "pink": (0.98, 0.56, 0.78),
}
# The second colour of a texture: nearly white inside dark colours, nearly black inside bright ones.
PALE, INKY = (0.95, 0.95, 0.95), (0.13, 0.13, 0.13)
SECOND_RGB: dict[str, tuple[float, float, float]] = {
    "red": PALE,
    "orange": INKY,
    "yellow": INKY,
    "green": PALE,
    "cyan": INKY,
    "blue": PALE,
    "purple": PALE,
    "pink": INKY,
}
# The grey level that a background of this tone starts from, lowest and highest.
TONE_LEVELS: dict[str, tuple[float, float]] = {"light": (0.80, 0.92), "dark": (0.10, 0.22)}
BACKGROUND_TINT = 0.03  # most that a channel leaves the grey
BACKGROUND_SWING = 0.06  # most that a pattern leaves the level
SHADE_SWING = 0.06  # most that an object's own brightness leaves its colour
