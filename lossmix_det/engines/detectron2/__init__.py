"""Detectron2's models behind the contract; importing a module of this room needs Detectron2."""
