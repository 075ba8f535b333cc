"""Event kinds: their names, the ranges that NIP-01 gives a meaning, and the bounded label each has in the metrics.

Which kinds a client may submit, and with what right, is not decided here but where events are admitted.
"""

from __future__ import annotations

from typing import Final

KIND_MAX: Final = 65535

PROFILE: Final = 0
TEXT_NOTE: Final = 1
CONTACT_LIST: Final = 3
DELETION: Final = 5
REACTION: Final = 7
STREAM_MESSAGE: Final = 9
CHANNEL_METADATA: Final = 41
GIFT_WRAP: Final = 1059
FILE_METADATA: Final = 1063

NIP29_PUT_USER: Final = 9000
NIP29_REMOVE_USER: Final = 9001
NIP29_EDIT_METADATA: Final = 9002
NIP29_DELETE_EVENT: Final = 9005
NIP29_CREATE_GROUP: Final = 9007
NIP29_DELETE_GROUP: Final = 9008
NIP29_CREATE_INVITE: Final = 9009
NIP29_JOIN_REQUEST: Final = 9021
NIP29_LEAVE_REQUEST: Final = 9022

SYSTEM_TIMER_FIRED: Final = 9100
SYSTEM_SLASH_COMMAND: Final = 9110
SYSTEM_FLAG: Final = 9900

PRESENCE_UPDATE: Final = 20001
TYPING_INDICATOR: Final = 20002
AUTH: Final = 22242
PAIRING: Final = 24134
BLOSSOM_AUTH: Final = 24242
HTTP_AUTH: Final = 27235

LONG_FORM: Final = 30023
NIP29_GROUP_METADATA: Final = 39000
NIP29_GROUP_ADMINS: Final = 39001
NIP29_GROUP_MEMBERS: Final = 39002
NIP29_GROUP_ROLES: Final = 39003

STREAM_MESSAGE_V1: Final = 40001  # never accepted; older clients still ask for it in their filters
STREAM_MESSAGE_V2: Final = 40002
STREAM_MESSAGE_EDIT: Final = 40003
STREAM_MESSAGE_PINNED: Final = 40004
STREAM_MESSAGE_BOOKMARKED: Final = 40005
STREAM_MESSAGE_SCHEDULED: Final = 40006
STREAM_REMINDER: Final = 40007
STREAM_MESSAGE_DIFF: Final = 40008
SYSTEM_MESSAGE: Final = 40099
CANVAS: Final = 40100

DM_CREATED: Final = 41001
DM_MEMBER_ADDED: Final = 41002
DM_MEMBER_REMOVED: Final = 41003

TOPIC_CREATED: Final = 42001
TOPIC_UPDATED: Final = 42002
TOPIC_ARCHIVED: Final = 42003

JOB_REQUEST: Final = 43001
JOB_ACCEPTED: Final = 43002
JOB_PROGRESS: Final = 43003
JOB_RESULT: Final = 43004
JOB_CANCEL: Final = 43005
JOB_ERROR: Final = 43006

SUBSCRIPTION_CREATED: Final = 44001
SUBSCRIPTION_MATCHED: Final = 44002
SUBSCRIPTION_PAUSED: Final = 44003
SUBSCRIPTION_RESUMED: Final = 44004

MEMBER_ADDED_NOTIFICATION: Final = 44100
MEMBER_REMOVED_NOTIFICATION: Final = 44101

FORUM_POST: Final = 45001
FORUM_VOTE: Final = 45002
FORUM_COMMENT: Final = 45003

WORKFLOW_TRIGGERED: Final = 46001
WORKFLOW_STEP_STARTED: Final = 46002
WORKFLOW_STEP_COMPLETED: Final = 46003
WORKFLOW_STEP_FAILED: Final = 46004
WORKFLOW_COMPLETED: Final = 46005
WORKFLOW_FAILED: Final = 46006
WORKFLOW_CANCELLED: Final = 46007
WORKFLOW_APPROVAL_REQUESTED: Final = 46010
WORKFLOW_APPROVAL_GRANTED: Final = 46011
WORKFLOW_APPROVAL_DENIED: Final = 46012

USER_GROUP_CREATED: Final = 47001
USER_GROUP_UPDATED: Final = 47002
USER_GROUP_DELETED: Final = 47003

AUDIT_ENTRY: Final = 48001
COMPLIANCE_EXPORT: Final = 48002
KNOWLEDGE_CRYSTAL_CREATED: Final = 48003
KNOWLEDGE_CRYSTAL_APPROVED: Final = 48004
KNOWLEDGE_CRYSTAL_UPDATED: Final = 48005
AUDIT_CHECKPOINT: Final = 48010  # signed by the relay: a tree head of its audit log

HUDDLE_STARTED: Final = 48100
HUDDLE_PARTICIPANT_JOINED: Final = 48101
HUDDLE_PARTICIPANT_LEFT: Final = 48102
HUDDLE_ENDED: Final = 48103
HUDDLE_TRACK_PUBLISHED: Final = 48104
HUDDLE_RECORDING_AVAILABLE: Final = 48105
HUDDLE_GUIDELINES: Final = 48106

MEDIA_UPLOAD: Final = 49001  # only ever in audit entries

# Who is in which channel and who wrote a sealed message to whom is nobody's business but the addressee's.
P_GATED: Final = frozenset({GIFT_WRAP, MEMBER_ADDED_NOTIFICATION, MEMBER_REMOVED_NOTIFICATION})


def is_ephemeral(kind: int) -> bool:
    """NIP-01: relayed, never stored."""
    return 20000 <= kind <= 29999


def is_replaceable(kind: int) -> bool:
    """NIP-01: one live version per author. Kind 41 counts as replaceable here, as in the original."""
    return kind in (PROFILE, CONTACT_LIST, CHANNEL_METADATA) or 10000 <= kind <= 19999


def is_addressable(kind: int) -> bool:
    """NIP-01 (NIP-33 before it): one live version per author and `d` tag."""
    return 30000 <= kind <= 39999


def is_workflow_execution(kind: int) -> bool:
    """Written by the workflow engine about itself; must never trigger a workflow again."""
    return WORKFLOW_TRIGGERED <= kind <= WORKFLOW_APPROVAL_DENIED


def _labelled() -> dict[int, str]:
    ranges = [
        (0, 9), (1059, 1059), (1063, 1063), (9000, 9022), (9100, 9100), (9110, 9110), (9900, 9900), (20001, 20002),
        (24134, 24134), (30023, 30023), (39000, 39003), (40002, 40100), (41001, 41003), (42001, 42003), (43001, 43006),
        (44001, 44004), (44100, 44101), (45001, 45003), (46001, 46012), (47001, 47003), (48001, 48005), (48010, 48010),
        (48100, 48105), (49001, 49001),
    ]  # fmt: skip
    return {kind: str(kind) for first, last in ranges for kind in range(first, last + 1)}


_LABELS: Final = _labelled()


def kind_label(kind: int) -> str:
    """The metric label of a kind: its number if it is one of ours, else `ephemeral` or `other`.

    The number of labels is bounded (a client picks the kind): of the 10 000 ephemeral kinds only the three that our
    clients send keep a label of their own.
    """
    return _LABELS.get(kind) or ("ephemeral" if is_ephemeral(kind) else "other")
