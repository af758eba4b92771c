"""Heat files, and the files of other systems. Needs no torch."""

from isotherm.traces.detection import FileFormat, detect_format
from isotherm.traces.files import (
    PlacementFormat,
    read_heat,
    read_placement,
    write_placement,
)
from isotherm.traces.header import HeatHeader
from isotherm.traces.recorder import HeatWriter
from isotherm.traces.recording import HeatRecorder, record_to
from isotherm.traces.sources import PlacementFile
from isotherm.traces.synthesis import HeatSpec, synthesize
from isotherm.traces.trace import HeatTrace

__all__ = [
    "FileFormat",
    "HeatHeader",
    "HeatRecorder",
    "HeatSpec",
    "HeatTrace",
    "HeatWriter",
    "PlacementFile",
    "PlacementFormat",
    "detect_format",
    "read_heat",
    "read_placement",
    "record_to",
    "synthesize",
    "write_placement",
]
