"""Masks by name, as xformers/ops/fmha/attn_bias.py documents them; `window()` gives (causal, left, right)."""

from dataclasses import dataclass


@dataclass
class LowerTriangularFromBottomRightMask:
    def window(self):
        return True, -1, 0


@dataclass
class LowerTriangularFromBottomRightLocalAttentionMask(LowerTriangularFromBottomRightMask):
    _window_size: int

    def __post_init__(self):
        if self._window_size <= 0:
            raise ValueError(f"Expected `window_size > 0`, but window_size={self._window_size}")

    def window(self):  # the row's own key is one of the window
        return True, self._window_size - 1, 0


@dataclass
class LocalAttentionFromBottomRightMask:
    window_left: int
    window_right: int

    def __post_init__(self):
        if self.window_left < 0 or self.window_right < 0:
            raise ValueError("window_left and window_right must be >= 0")

    def window(self):
        return False, self.window_left, self.window_right
