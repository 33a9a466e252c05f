"""What the tests of Locust need: its pinned requirements and a locustfile."""

from __future__ import annotations

from pathlib import Path

SOURCES = Path(__file__).parent
