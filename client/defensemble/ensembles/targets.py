"""The targets of an edit, each a repository and the servers that read it, and what the edit does there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .server_models import ModelServer, is_averaging, steps_of

if TYPE_CHECKING:
    from defensemble_export.editing import EditJournal, EditPlan


@dataclass(frozen=True)
class EditTarget:
    """One repository and the servers that read it."""

    repository: Path
    servers: tuple[ModelServer, ...]


@dataclass
class TargetEdit:
    """What an edit does at one target.

    Attributes:
        target: The repository and its servers.
        plan: The files that change.
        planned_digest: The digest of the ensemble's configuration when the edit was planned.
        ready: By server, the versions of each model that were loaded before.
        configs: By server, the configurations with which the ensemble and its models were loaded before, as JSON.
        loads: By server, the models to load: they are not loaded, or their configuration has changed.
        reload_candidates: By server, the models whose files may have changed in a way that no configuration describes.
        unload_candidates: By server, the models that may no longer be needed.
        journal: The journal, once it is prepared.
    """

    target: EditTarget
    plan: EditPlan
    planned_digest: str | None = None
    ready: dict[str, dict[str, set[int]]] = field(default_factory=dict)
    configs: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    loads: dict[str, list[str]] = field(default_factory=dict)
    reload_candidates: dict[str, list[str]] = field(default_factory=dict)
    unload_candidates: dict[str, list[str]] = field(default_factory=dict)
    journal: EditJournal | None = None

    @property
    def name(self) -> str:
        """The ensemble's name."""
        return self.plan.name

    @property
    def repository(self) -> Path:
        """The repository."""
        return self.target.repository

    @property
    def servers(self) -> tuple[ModelServer, ...]:
        """The servers that read the repository."""
        return self.target.servers

    def inspect_servers(self, *, reloads: bool) -> None:
        """Find out what the servers have loaded, and what they must load and may unload; with `reloads`, all members are reloaded."""
        models = list(dict.fromkeys(model for model, _ in self.plan.steps()))
        for server in self.servers:
            url = server.url
            self.ready[url] = server.ready()
            # Each is read once: under load, a request takes milliseconds.
            loaded = {model: server.config(model) for model in (self.name, *models) if model in self.ready[url]}
            self.configs[url] = {model: config for model, config in loaded.items() if config is not None}
            self.loads[url] = self._models_to_load(server)
            members = [model for model in models if not is_averaging(model)] if reloads else []
            self.reload_candidates[url] = [model for model in members if model not in self.loads[url]]
            self.unload_candidates[url] = list(dict.fromkeys([*self.plan.released(), *(model for model, _ in self.served_steps(server))]))

    def loaded_config(self, server: ModelServer) -> dict[str, Any] | None:
        """Return the ensemble's configuration on a server before the edit; None if it was not loaded there."""
        return self.configs[server.url].get(self.name)

    def served_steps(self, server: ModelServer) -> list[tuple[str, int]]:
        """Return the models that the ensemble ran on a server before the edit, with their versions; empty if it was not loaded."""
        return steps_of(self.loaded_config(server) or {})

    def _models_to_load(self, server: ModelServer) -> list[str]:
        from defensemble_export.editing import is_served_as_on_disk

        ready, files = self.ready[server.url], self.plan.outcome()
        must_load: dict[str, bool] = {}
        for model, version in self.plan.steps():
            is_missing = version not in ready.get(model, set())
            if not is_missing and model not in must_load:
                loaded = self.configs[server.url].get(model)
                is_missing = loaded is None or not is_served_as_on_disk(files, model, loaded)
            must_load[model] = must_load.get(model, False) or is_missing
        return [model for model, is_missing in must_load.items() if is_missing]

    def has_outdated_server(self) -> bool:
        """Return whether a server does not serve the state that will be on disk."""
        from defensemble_export.editing import is_served_as_on_disk

        files = self.plan.outcome()
        for server in self.servers:
            if self.plan.after is None:
                is_outdated = self.name in self.ready[server.url]
            else:
                loaded = self.loaded_config(server)
                is_outdated = bool(self.loads[server.url]) or loaded is None or not is_served_as_on_disk(files, self.name, loaded)
            if is_outdated:
                return True
        return False

    def missing_models(self) -> list[str]:
        """Return the models to load that a server of this target had not loaded in any version."""
        return sorted({model for url, models in self.loads.items() for model in models if model not in self.ready[url]})
