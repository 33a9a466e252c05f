"""Where an edit is made: a folder and the servers that read it, and what the edit does there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .server_models import Served, is_averaging

if TYPE_CHECKING:
    from defensemble_export.editing import EditJournal, EditPlan


@dataclass(frozen=True)
class EditTarget:
    """One folder, and the servers that read it."""

    repository: Path
    servers: tuple[Served, ...]


@dataclass
class TargetEdit:
    """What an edit does at one target; `planned_digest` is that of the ensemble's configuration when the edit was planned.

    By server: `ready` are the versions that answered before, `loads` the models that it lacks or whose configuration has changed,
    `reload_candidates` those whose files may have changed in a way that no configuration describes, and `unload_candidates` those that it
    may no longer need.
    """

    target: EditTarget
    plan: EditPlan
    planned_digest: str | None = None
    ready: dict[str, dict[str, set[int]]] = field(default_factory=dict)
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
        """The folder."""
        return self.target.repository

    @property
    def servers(self) -> tuple[Served, ...]:
        """The servers that read the folder."""
        return self.target.servers

    def inspect_servers(self, *, reloads: bool) -> None:
        """Find out what the servers have loaded, and what they have to load and may unload; with `reloads` all members are loaded again."""
        members = list(dict.fromkeys(model for model, _ in self.plan.steps() if not is_averaging(model)))
        for served in self.servers:
            url = served.url
            self.ready[url] = served.ready()
            self.loads[url] = self._models_to_load(served)
            self.reload_candidates[url] = [model for model in members if model not in self.loads[url]] if reloads else []
            now = [model for model, _ in served.steps(self.name)] if self.name in self.ready[url] else []
            self.unload_candidates[url] = list(dict.fromkeys([*self.plan.released(), *now]))

    def loaded_config(self, served: Served) -> dict[str, Any] | None:
        """The ensemble's configuration as a server has it loaded; None where it has not."""
        return served.config(self.name) if self.name in self.ready[served.url] else None

    def _models_to_load(self, served: Served) -> list[str]:
        from defensemble_export.editing import is_served_as_on_disk

        ready, files = self.ready[served.url], self.plan.outcome()
        wanted: dict[str, bool] = {}
        for model, version in self.plan.steps():
            lacks = version not in ready.get(model, set())
            if not lacks and model not in wanted:
                loaded = served.config(model)
                lacks = loaded is None or not is_served_as_on_disk(files, model, loaded)
            wanted[model] = wanted.get(model, False) or lacks
        return [model for model, needed in wanted.items() if needed]

    def has_outdated_server(self) -> bool:
        """Return whether a server does not serve what will be on disk."""
        from defensemble_export.editing import is_served_as_on_disk

        files = self.plan.outcome()
        for served in self.servers:
            if self.plan.after is None:
                behind = self.name in self.ready[served.url]
            else:
                loaded = self.loaded_config(served)
                behind = bool(self.loads[served.url]) or loaded is None or not is_served_as_on_disk(files, self.name, loaded)
            if behind:
                return True
        return False

    def lacking_models(self) -> list[str]:
        """Return the models to load that a server of this target had not loaded at all."""
        return sorted({model for url, models in self.loads.items() for model in models if model not in self.ready[url]})
