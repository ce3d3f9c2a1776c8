"""How a network of features hears: from a recording to coefficients, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields

from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.errors import ConfigurationError

MAXIMUM, PEAK, FULL_SCALE = "maximum", "peak", "full_scale"
SCALINGS = (MAXIMUM, PEAK, FULL_SCALE)
LARGEST = 2**24
"""Values of the spectrogram of a recording: a minute of speech has a few million."""


@dataclass
class FrontEnd:
    """MFCC of a recording, as networks for keywords take them; the defaults are MLPerf Tiny's."""

    sample_rate: int = 0
    """Samples a second, 16,000 in MLPerf Tiny; recordings of another rate are refused. 0: nothing
    says how features are made of recordings, and the network has no front end."""
    seconds: float = 1.0
    """Length of what the network hears; silence is added behind shorter recordings."""
    window_ms: float = 30.0
    """Length of a frame, in milliseconds."""
    stride_ms: float = 20.0
    """From one frame to the next, in milliseconds."""
    mel_bands: int = 40
    """Filters, evenly spaced in mel."""
    lowest_hz: float = 20.0
    """Where the first filter begins."""
    highest_hz: float = 4000.0
    """Where the last filter ends."""
    coefficients: int = 10
    """How many of the cosine transform are kept, from the first on."""
    log_offset: float = 1e-6
    """Is added to the magnitudes of the filters before their logarithm."""
    scaling: str = MAXIMUM
    """What samples are divided by: the ``maximum`` of the recording (MLPerf Tiny's, which has a
    sign), its ``peak`` of either sign, or ``full_scale``, so that 1 is the loudest there can be."""

    def __post_init__(self) -> None:
        if not self.sample_rate:
            self._refuse_unused()
            return
        require_range("model.front_end.sample_rate", self.sample_rate, 1000, 192_000)
        require_range("model.front_end.seconds", self.seconds, 0.01, 60)
        require_range("model.front_end.window_ms", self.window_ms, 1, 1000)
        require_range("model.front_end.stride_ms", self.stride_ms, 1, 1000)
        require_range("model.front_end.mel_bands", self.mel_bands, 4, 256)
        require_range("model.front_end.highest_hz", self.highest_hz, 0, self.sample_rate / 2)
        require_range("model.front_end.lowest_hz", self.lowest_hz, 0)
        require_range("model.front_end.coefficients", self.coefficients, 1, self.mel_bands)
        require_range("model.front_end.log_offset", self.log_offset, 0, 1, open_minimum=True)
        require_choice("model.front_end.scaling", self.scaling, SCALINGS)
        if self.lowest_hz >= self.highest_hz:
            raise ConfigurationError(
                f"model.front_end.lowest_hz={self.lowest_hz} must be less than highest_hz="
                f"{self.highest_hz}"
            )
        if self.window < 2:
            raise ConfigurationError(
                f"model.front_end.window_ms={self.window_ms} is {self.window} sample at sample_rate"
                f"={self.sample_rate}: a frame has two or more"
            )
        if self.window > self.samples:
            raise ConfigurationError(
                f"model.front_end.window_ms={self.window_ms} is longer than seconds="
                f"{self.seconds}: there would be no frame"
            )
        if self.frames * self.fft_length > LARGEST:
            raise ConfigurationError(
                f"model.front_end: {self.frames} frames of {self.fft_length} values are more than "
                f"{LARGEST}; choose a longer stride_ms or fewer seconds"
            )

    def _refuse_unused(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) != each.default:
                raise ConfigurationError(
                    f"model.front_end.{each.name}={getattr(self, each.name)} without "
                    "model.front_end.sample_rate: it would not be used; set the rate, too"
                )

    @property
    def samples(self) -> int:
        """Return the samples that the network hears."""
        return round(self.sample_rate * self.seconds)

    @property
    def window(self) -> int:
        """Return the samples of a frame."""
        return round(self.sample_rate * self.window_ms / 1000)

    @property
    def stride(self) -> int:
        """Return the samples from the begin of a frame to that of the next."""
        return round(self.sample_rate * self.stride_ms / 1000)

    @property
    def frames(self) -> int:
        """Return the frames that fit, without padding."""
        return 1 + (self.samples - self.window) // self.stride

    @property
    def fft_length(self) -> int:
        """Return the power of two that a frame is padded to."""
        return int(2 ** (self.window - 1).bit_length())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (channels, frames, coefficients) of what the network takes."""
        return 1, self.frames, self.coefficients
