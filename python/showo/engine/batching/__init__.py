"""One engine for many requests at a time, under the server and the page: see `showo.engine.batching.engine`."""

from showo.engine.batching.engine import Engine as Engine
from showo.engine.batching.engine import Facts as Facts
from showo.engine.batching.requests import Answer as Answer
from showo.engine.batching.requests import Draw as Draw
from showo.engine.batching.requests import Extend as Extend
from showo.engine.batching.requests import Inpaint as Inpaint
from showo.engine.batching.requests import Request as Request
from showo.engine.batching.requests import Vary as Vary
from showo.engine.batching.ticket import AnswerDone as AnswerDone
from showo.engine.batching.ticket import DeadlineError as DeadlineError
from showo.engine.batching.ticket import DrawingDone as DrawingDone
from showo.engine.batching.ticket import EngineClosedError as EngineClosedError
from showo.engine.batching.ticket import EngineError as EngineError
from showo.engine.batching.ticket import EngineFailedError as EngineFailedError
from showo.engine.batching.ticket import EngineStuckError as EngineStuckError
from showo.engine.batching.ticket import Piece as Piece
from showo.engine.batching.ticket import Progress as Progress
from showo.engine.batching.ticket import QueueFullError as QueueFullError
from showo.engine.batching.ticket import RequestCancelledError as RequestCancelledError
from showo.engine.batching.ticket import StepError as StepError
from showo.engine.batching.ticket import Ticket as Ticket
