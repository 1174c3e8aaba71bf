"""What the kernel costs beside raw nats-py and other packages; run it with `natterjack bench`."""

from .ask import ROWS as ASK
from .context import ROWS as CONTEXT
from .emit import ROWS as EMIT
from .journal import ROWS as JOURNAL
from .measure import Figure, Row, Stage, measure, missing, rounds
from .others import ROWS as OTHERS
from .secured import ROWS as SECURED
from .tools import ROWS as TOOLS
from .trigger import ROWS as TRIGGER

__all__ = ["ROWS", "Figure", "Row", "Stage", "measure", "missing", "rounds"]

ROWS = [*EMIT, *TRIGGER, *ASK, *CONTEXT, *JOURNAL, *TOOLS, *SECURED, *OTHERS]
