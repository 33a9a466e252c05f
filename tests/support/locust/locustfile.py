from __future__ import annotations

from defensemble.load.locust_user import DefensembleUser


class EnsembleUser(DefensembleUser):
    model = "ensemble"
    batch_size = 2
