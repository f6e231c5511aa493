"""Pictures of what takes long to look at."""

from __future__ import annotations

from kerneld.picture import Picture
from tests.kerneld.conftest import FakeClock


class Scene:
    """Something that takes so long to draw; each drawing is another number."""

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self.num_drawn = 0

    def __call__(self) -> int:
        self._clock.advance(self._seconds)
        self.num_drawn += 1
        return self.num_drawn


def test_what_is_quickly_drawn_is_always_as_it_is_now(clock: FakeClock) -> None:
    picture = Picture(Scene(clock, 0.004), clock)
    assert [picture.look() for _ in range(3)] == [1, 2, 3]


def test_what_takes_long_serves_for_ten_times_as_long(clock: FakeClock) -> None:
    scene = Scene(clock, 0.1)
    picture = Picture(scene, clock)

    seen = []
    for _ in range(40):  # four seconds
        seen.append(picture.look())
        clock.advance(0.1)

    assert seen[:9] == [1] * 9
    assert seen[12] == 2
    assert scene.num_drawn == 5


def test_an_empty_picture_is_one_too(clock: FakeClock) -> None:
    drawn: list[dict[str, int]] = []

    def draw() -> dict[str, int]:
        clock.advance(1.0)
        drawn.append({})
        return drawn[-1]

    picture = Picture(draw, clock)
    assert picture.look() is picture.look()
