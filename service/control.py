"""What changes a service while it serves: its catalogue, the administrators' listener, and looks at the directory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack

from service.catalogue import Catalogue, Replica
from service.errors import PackageError, StartError
from service.plans import Plan
from service.polling import Poll
from service.security import Security
from service.settings import Settings
from service.stores import Store

log = logging.getLogger(__name__)


class Control:
    """`plan`, then `start` when what was planned is loaded, then `stop`."""

    def __init__(self, settings: Settings, store: Store, replica: Replica) -> None:
        self._settings = settings
        self._exit = ExitStack()
        self.catalogue = Catalogue(store, settings.policy(), replica, max_models=settings.max_models)

    def plan(self) -> list[Plan]:
        """What is to be loaded. Raises StartError where the models cannot be read at all."""
        try:
            return self.catalogue.plan()
        except PackageError as error:
            raise StartError(f"--models: {error}") from error

    def start(self, refused: Mapping[tuple[str, int], PackageError], security: Security | None) -> None:
        """`refused`: what of the plans could not be loaded. `security`: of the administrators' listener, where there is
        to be one. Raises StartError."""
        self.catalogue.started((name, version, str(why)) for (name, version), why in refused.items())
        if self._settings.admin_address and security is not None:
            # Not before it is needed: a supervisor does without grpc otherwise.
            from service.admin import Admin
            from service.listener import AdminListener

            address = self._settings.admin_address
            local = self._settings.is_local(address.rpartition(":")[0].strip("[]"))
            listener = AdminListener(
                address,
                Admin(self.catalogue).methods(),
                guard=security.guard,
                credentials=None if local else security.credentials(),
            )
            self._exit.callback(listener.stop)
            log.info("administrators are listened to", extra={"address": listener.address})
        if self._settings.watch_s:
            self._exit.enter_context(Poll(self._settings.watch_s, self.catalogue.scan, name="watch"))

    def stop(self) -> None:
        self._exit.close()
