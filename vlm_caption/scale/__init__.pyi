from .ray_captioner import RayCaptioner

__all__ = ["RayCaptioner"]
