"""Interactive lesion segmentation in PET/CT from a few clicks."""

__version__ = "0.1.0"
