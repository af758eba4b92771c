"""The heartbeat: all that ranks tell each other, in rounds that are the same on every rank.

One background thread per rank makes rounds on a CPU group of its own. A round is an all-gather of
small headers of fixed size, then exactly those collectives that the gathered headers call for. Every
rank reads the same headers, so every rank makes the same calls, whatever its state: states and failures
change the contents of a round, never its calls. Participants (heat, plans, moves) own words of the
header and act on what was gathered; they know nothing of each other.
"""

from isotherm.control.announcer import Announcer
from isotherm.control.callbacks import Callbacks
from isotherm.control.desk import PlanDesk
from isotherm.control.heartbeat import Heartbeat
from isotherm.control.link import GroupLink, Link, Transfer
from isotherm.control.meeting import Meeting
from isotherm.control.participant import Participant
from isotherm.control.peers import check_peers
from isotherm.control.plan_log import PlanLog, Promise
from isotherm.control.relink import Relink, StoreRelink
from isotherm.control.spans import Span, no_span
from isotherm.control.state_watch import Watch
from isotherm.control.states import Life, Limits, Seen, next_life

__all__ = [
    "Announcer",
    "Callbacks",
    "GroupLink",
    "Heartbeat",
    "Life",
    "Limits",
    "Link",
    "Meeting",
    "Participant",
    "PlanDesk",
    "PlanLog",
    "Promise",
    "Relink",
    "Seen",
    "Span",
    "StoreRelink",
    "Transfer",
    "Watch",
    "check_peers",
    "next_life",
    "no_span",
]
