from __future__ import annotations

from locust import LoadTestShape

from defensemble.load.locust_user import DefensembleUser


class EnsembleUser(DefensembleUser):
    model = "ensemble"
    batch_size = 2


class ThenIdle(LoadTestShape):  # type: ignore[misc]
    """Eight users, and at the end none: when it ends, a master waits only half a second for what its workers report every three."""

    def tick(self) -> tuple[int, float] | None:
        if self.get_run_time() < 3:
            return 8, 8
        return (0, 8) if self.get_run_time() < 10 else None
