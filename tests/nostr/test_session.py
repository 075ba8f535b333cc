"""The session, by scripts.

Each line of a script is one thing that happens:

    >> VERB name       the client sends this (an EVENT or AUTH with that id, a REQ or CLOSE with that sub id)
    == allowed         the session lets the message before pass on to its handler
    << frame           the session answers the message before with this frame
    !! proven name     the owner says: the attempt succeeded, this is who it is
    !! refused         the owner says: the attempt failed
    !! misuse          the session complains about what the owner said

Running a script takes its `>>` and `!!` lines as input and writes a transcript; script and transcript must be the same.
"""

from __future__ import annotations

import itertools
from textwrap import dedent

import pytest

from relay.errors import ProtocolError
from relay.nostr.event import Event
from relay.nostr.messages import AuthMessage, CloseMessage, CountMessage, EventMessage, ReqMessage
from relay.nostr.session import GATES, TRANSITIONS, Outcome, Phase, SessionMisuse, SessionState, Verb, verb_of
from tests.nostr.people import ALICE


def message(verb, name):
    signed = Event(name, ALICE.public_hex, 1, 22242 if verb == "AUTH" else 1, [], "", "")
    match verb:
        case "EVENT":
            return EventMessage(signed)
        case "AUTH":
            return AuthMessage(signed)
        case "REQ":
            return ReqMessage(name, ())
        case "COUNT":
            return CountMessage(name, ())
        case "CLOSE":
            return CloseMessage(name)
    raise AssertionError(verb)


def run(session, lines):
    for line in lines:
        match line.split():
            case [">>", verb, name]:
                yield line
                frames = session.refuse(message(verb, name))
                yield from ["== allowed"] if frames is None else [f"<< {frame.decode()}" for frame in frames]
            case ["!!", "proven", name]:
                yield line
                yield from attempt(session.authenticated, name)
            case ["!!", "refused"]:
                yield line
                yield from attempt(session.failed)


def attempt(tell, *args):
    try:
        tell(*args)
    except SessionMisuse:
        yield "!! misuse"


def play(script):
    session: SessionState[str] = SessionState("c0ffee", "wss://relay.example")
    lines = dedent(script).strip().splitlines()
    assert list(run(session, lines)) == lines
    return session


def test_before_authentication():
    session = play(
        """
        >> EVENT e1
        << ["OK","e1",false,"auth-required: not authenticated"]
        >> REQ s1
        << ["NOTICE","auth-required: authenticate before subscribing"]
        << ["CLOSED","s1","auth-required: not authenticated"]
        >> COUNT c1
        << ["CLOSED","c1","auth-required: not authenticated"]
        >> CLOSE s1
        == allowed
        >> AUTH a1
        == allowed
        """
    )
    assert session.phase is Phase.PENDING
    assert session.auth is None


def test_after_success():
    session = play(
        """
        >> AUTH a1
        == allowed
        !! proven alice
        >> EVENT e1
        == allowed
        >> REQ s1
        == allowed
        >> COUNT s1
        == allowed
        >> CLOSE s1
        == allowed
        >> AUTH a2
        << ["OK","a2",false,"auth-required: already authenticated"]
        >> EVENT e2
        == allowed
        """
    )
    assert session.phase is Phase.AUTHENTICATED
    assert session.auth == "alice"


def test_after_failure():
    session = play(
        """
        >> AUTH a1
        == allowed
        !! refused
        >> EVENT e1
        << ["OK","e1",false,"auth-required: not authenticated"]
        >> REQ s1
        << ["NOTICE","auth-required: authenticate before subscribing"]
        << ["CLOSED","s1","auth-required: not authenticated"]
        >> COUNT c1
        << ["CLOSED","c1","auth-required: not authenticated"]
        >> CLOSE s1
        == allowed
        >> AUTH a2
        << ["OK","a2",false,"auth-required: authentication already failed"]
        """
    )
    assert session.phase is Phase.FAILED
    assert session.auth is None


def test_there_is_one_attempt_and_its_end_is_final():
    assert (
        play(
            """
            !! proven alice
            !! proven bob
            !! misuse
            !! refused
            !! misuse
            """
        ).auth
        == "alice"
    )
    failed = play(
        """
        !! refused
        !! proven mallory
        !! misuse
        !! refused
        !! misuse
        """
    )
    assert failed.phase is Phase.FAILED
    assert failed.auth is None


def test_names_in_frames_are_escaped():
    play(
        r"""
        >> REQ a"\b
        << ["NOTICE","auth-required: authenticate before subscribing"]
        << ["CLOSED","a\"\\b","auth-required: not authenticated"]
        """
    )


def test_greeting():
    session: SessionState[str] = SessionState("c0ffee", "wss://relay.example")
    assert session.greeting() == b'["AUTH","c0ffee"]'
    assert (session.challenge, session.relay_url) == ("c0ffee", "wss://relay.example")


def test_an_empty_challenge_is_a_mistake():
    with pytest.raises(AssertionError):
        SessionState("", "wss://relay.example")


# --- the tables -------------------------------------------------------------------------------------------------------


def test_the_tables_are_complete():
    assert set(GATES) == set(TRANSITIONS) == set(Phase)
    assert all(set(row) == set(Verb) for row in GATES.values())
    assert set(TRANSITIONS[Phase.PENDING]) == set(Outcome)


def test_every_refusal_says_why_and_nothing_allowed_does():
    for phase, verb in itertools.product(Phase, Verb):
        gate = GATES[phase][verb]
        assert gate.allowed is (gate.refusal == "")
        assert gate.allowed or gate.refusal.startswith("auth-required: ")


def test_only_an_authenticated_session_writes_or_reads():
    for verb in (Verb.EVENT, Verb.REQ, Verb.COUNT):
        assert [phase for phase in Phase if GATES[phase][verb].allowed] == [Phase.AUTHENTICATED]


def test_check_answers_from_the_table():
    session: SessionState[str] = SessionState("c0ffee", "wss://relay.example")
    for verb in Verb:
        assert session.check(verb) is GATES[Phase.PENDING][verb]


@pytest.mark.parametrize("verb", list(Verb))
def test_every_message_has_its_verb(verb):
    assert verb_of(message(verb.name, "x")) is verb


def test_misuse_is_ours():
    assert issubclass(SessionMisuse, ProtocolError)
