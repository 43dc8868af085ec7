from .app import build_app
from .batcher import Batcher
from .guard import Guard
from .limits import ServingLimits
from .server import listen, serve
from .service import Service, Settings

__all__ = ["Batcher", "Guard", "Service", "ServingLimits", "Settings", "build_app", "listen", "serve"]
