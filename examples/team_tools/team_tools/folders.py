"""Where the tools look, and where they write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from natterjack import Settings

PREFIX = "TEAM_TOOLS_"


class Folders(Settings):
    """Folders; relative ones are below the folder that the server is started in.

    Attributes:
        corpus: What `web_search` searches; by default the Python language reference.
        documents: What `document_search` searches, and nothing outside of it.
        published: Where `publish` writes; made when it is needed.
    """

    corpus: Path | None = None
    documents: Path = Path("documents")
    published: Path = Path("published")

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Folders:
        """Return those that TEAM_TOOLS_CORPUS, TEAM_TOOLS_DOCUMENTS and TEAM_TOOLS_PUBLISHED name."""
        names = {name: environment.get(PREFIX + name.upper()) for name in cls.model_fields}
        return cls.model_validate({name: Path(folder) for name, folder in names.items() if folder})
