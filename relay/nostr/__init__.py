"""The Nostr protocol without any I/O.

Bytes and parsed JSON go in, typed values and ready-made frames come out. Nothing in here waits, reads a clock, draws a
random number or opens a socket: `now`, challenges and secret keys are arguments. So every rule can be tested by calling
a function, and the same code serves the socket, the HTTP door and the command line.

    kinds     event kinds, their ranges and metric labels
    ids       the spellings of event ids, public keys and channel ids
    keys      secp256k1: x-only public keys, Schnorr signatures
    nip19     bech32 identifiers (npub, note, nevent …)
    event     events: parse, canonical form, id, signature
    filter    filters: parse, match, which channels a subscription is about
    messages  client messages in, relay frames out
    session   what a connection may do before and after it authenticated
    nip10     whom an event answers
    nip11     the relay information document
    nip40     when an event expires
    nip42     the proof in an AUTH event
    nip98     the proof that its author sends an HTTP request
    imeta     tags that describe files (NIP-92)
    diff      diffs as messages (kind 40008)
    numbers   whole numbers as tags write them

Everything raised here derives from `relay.errors.ProtocolError`.
"""
