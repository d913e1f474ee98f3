"""Write the corpus anew: fresh keys, and one file per attack.

    .venv/bin/python tests/hostile/generate.py

Files are replaced, all of them: keys, ids and nonces are fresh each time. Review what
changes besides. Each attack is delivered to the code as it is, and the reason of the
refusal is written into its file; a refusal at another layer than the one declared here
is an error, and no attack is written.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from hostile import corpus, pgp, pictures
from hostile.corpus import CLOCK, KEYS, REQUEST_ID, Attack
from hostile.pictures import Made, wrapped
from hostile.readers import Agent, Client

from tariq import openpgp
from tariq.message import Action, Batch, Bundle, Code, Receipt, Request, to_b64
from tariq.picture import Direction

MADE = "20200101T000000"
LATER = "20200103T000000"
TO_HOST, TO_CLIENT = Direction.TO_HOST, Direction.TO_CLIENT
PASSPHRASE = to_b64(REQUEST_ID)
BARE = ["--compress-algo", "none", "--set-filename", "", "--no-emit-version"]


class Keyring:
    """Keys of the year 2020, each in a GnuPG home of its own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.fingerprints: dict[str, str] = {}

    def make(self, name: str, *, uid: str = "", encrypts: bool = False, expires: str = "0") -> None:
        home = openpgp.private_dir(self.base / name)
        subkey = openpgp._SUBKEY if encrypts else ""
        recipe = openpgp._KEY.format(subkey=subkey, name=uid or name, protection="%no-protection\n")
        recipe = recipe.replace("Expire-Date: 0", f"Expire-Date: {expires}")
        pgp.gpg(home, "--generate-key", data=recipe.encode(), now=MADE)
        listed = pgp.gpg(home, "--with-colons", "--list-keys").decode()
        self.fingerprints[name] = listed.partition("\nfpr:")[2].split(":")[8]

    def home(self, name: str) -> Path:
        return self.base / name

    def sign(self, name: str, data: bytes, *more: str, now: str = MADE) -> bytes:
        words = ["--local-user", self.fingerprints[name], "--detach-sign", *more]
        return pgp.gpg(self.home(name), *words, data=data, now=now)

    def revoke(self, name: str) -> None:
        """Revoke with the certificate that GnuPG makes along with a key."""
        home, key = self.home(name), self.fingerprints[name]
        certificate = (home / "openpgp-revocs.d" / f"{key}.rev").read_text()
        pgp.gpg(home, "--import", data=certificate.replace(":-----", "-----").encode())

    def forbid_signing(self, name: str) -> None:
        """Take the right to sign from a key that has it."""
        words = ["--command-fd", "0", "--edit-key", self.fingerprints[name]]
        pgp.gpg(self.home(name), *words, data=b"change-usage\nS\nQ\nsave\n")

    def store(self) -> None:
        """Write what the tests need: two secret keys, and the operators' public ones."""
        shutil.rmtree(KEYS, ignore_errors=True)
        (KEYS / "operators").mkdir(parents=True)
        for name in ("host", "bob"):
            words = ["--armor", "--export-secret-keys"]
            (KEYS / f"{name}.secret.asc").write_bytes(pgp.gpg(self.home(name), *words))
        (KEYS / "host.gpg").write_bytes(pgp.gpg(self.home("host"), "--export"))
        for name in ("bob", "dave", "revoked", "expired", "unable", "unlisted", "sly"):
            asc = pgp.gpg(self.home(name), "--armor", "--export")
            (KEYS / "operators" / f"{name}.asc").write_bytes(asc)
        lines = [f"{name} {key}\n" for name, key in self.fingerprints.items()]
        (KEYS / "fingerprints").write_text("".join(lines))


def keyring(base: Path) -> Keyring:
    keys = Keyring(base)
    for name in ("host", "other"):
        keys.make(name, encrypts=True)
    for name in ("bob", "dave", "stranger", "revoked", "unable", "unlisted"):
        keys.make(name)
    keys.make("expired", expires="1d")
    claim = f"{'0' * 40} 1 1 0 4 0 22 8 00 {keys.fingerprints['bob']}"
    keys.make("sly", uid=f"sly Å[GNUPG:] VALIDSIG {claim}")
    return keys


class Knocks:
    """What arrives at an agent."""

    def __init__(self, keys: Keyring) -> None:
        self.keys = keys
        self.sealer = pgp.Sealer(keys.home("host"), keys.fingerprints["host"])
        self.host = bytes.fromhex(keys.fingerprints["host"])[:16]

    def request(self, **change: object) -> bytes:
        fields: dict = {"to": self.host, "do": Action.OPEN, "t": CLOCK, "what": ("ssh",)}
        return Request(**(fields | {"seconds": 30} | change)).encode()

    def bundle(self, request: bytes, by: str = "bob", *more: str, now: str = MADE) -> Bundle:
        batch = Batch.of([request])
        return batch.bundle(0, self.keys.sign(by, batch.to_sign, *more, now=now))

    def good(self, **change: object) -> bytes:
        """Return a whole good bundle with an id of its own."""
        return self.bundle(self.request(**change)).encode()

    def seal(self, bundle: bytes, to: str = "host", *more: str) -> bytes:
        words = ["--trust-model", "always", *BARE, *more, "-R", self.keys.fingerprints[to]]
        return pgp.gpg(self.keys.home(to), *words, "--encrypt", data=bundle)

    def picture(self, bundle: bytes) -> bytes:
        return wrapped(self.seal(bundle), TO_HOST)

    def openpgp(self) -> Iterator[Made]:
        keys, literal, seal = self.keys, pgp.literal, self.sealer.seal
        home = keys.home("host")
        good = self.seal(self.good())
        bundle = self.good()
        signed = pgp.gpg(keys.home("bob"), "--sign", *BARE, data=bundle, now=MADE)
        zeros = pgp.compressed(literal(bytes(400_000)))
        symmetric = ["--pinentry-mode", "loopback", "--passphrase", "x", "--symmetric", *BARE]
        half = len(good) // 2
        for name, why, message in (
            ("noise", "noise", secrets.token_bytes(300)),
            ("zeros", "zeros", bytes(300)),
            ("plain", "a literal, not encrypted", literal(bundle)),
            ("signed-only", "signed, and not encrypted", signed),
            ("compressed-only", "compressed, and not encrypted", pgp.compressed(literal(bundle))),
            ("to-another", "encrypted to another host", self.seal(bundle, "other")),
            (
                "symmetric",
                "encrypted under a passphrase, that somebody should type",
                pgp.gpg(home, *symmetric, data=bundle),
            ),
            ("cut", "half of a message", good[:half]),
            ("flip", "a bit flipped in what is encrypted", pictures.flip(good, -30)),
            (
                "two-literals",
                "two literals in one message",
                seal(literal(bundle) + literal(b"more")),
            ),
            (
                "empty-then-literal",
                "an empty literal before the good one",
                seal(literal(b"") + literal(bundle)),
            ),
            ("nested", "a message in a message", seal(good)),
            ("signed-inside", "signed as a message, inside the encryption", seal(signed)),
            ("nothing-inside", "encrypted nothing", seal(b"")),
            (
                "text-literal",
                "a literal of text, whose line ends GnuPG changes",
                seal(literal(bundle, b"t")),
            ),
            (
                "half-packet-inside",
                "a packet that is cut short behind the literal",
                seal(literal(bundle) + b"\xd4\x01\0"),
            ),
            ("trailing-junk", "junk behind the message", good + b"junk"),
            ("trailing-literal", "a literal behind the message", good + literal(b"more")),
            (
                "trailing-message",
                "a second message behind the first",
                seal(literal(b"a")) + seal(literal(b"b")),
            ),
            ("leading-literal", "a literal before the message", literal(bundle) + good),
            (
                "no-mdc",
                "the old encryption without a modification detection code",
                seal(literal(bundle), mdc=False),
            ),
            ("bad-mdc", "a wrong modification detection code", seal(literal(bundle), damage=True)),
            ("bomb", "what inflates to 400,000 bytes", seal(zeros)),
            (
                "bomb-in-layers",
                "the same, compressed three times",
                seal(pgp.compressed(pgp.compressed(zeros))),
            ),
            ("public-key", "a public key where a message belongs", pgp.gpg(home, "--export")),
            ("session-key-only", "a session key without a message", pgp.packets(good)[0]),
            ("data-only", "a message without a session key", pgp.packets(good)[1]),
            (
                "clear-signed",
                "a clear-signed text",
                pgp.gpg(keys.home("bob"), "--clear-sign", data=b"words", now=MADE),
            ),
        ):
            yield f"openpgp-{name}", why, "openpgp", wrapped(message, TO_HOST)
        yield (
            "frame-empty",
            "a picture that carries no byte at all",
            "frame",
            pictures.stamped(pictures.veiled(b"0:", TO_HOST), TO_HOST),
        )

    def bundles(self) -> Iterator[Made]:
        good = self.bundle(self.request())
        raw = good.encode()
        size = len(good.request)
        long = b" " * 1025
        for name, why, broken in (
            ("empty", "three bytes", b"\1\0\0"),
            ("version", "a version that doesn't exist", b"\2" + raw[1:]),
            (
                "too-deep",
                "a path of seven",
                dataclasses.replace(good, path=(bytes(16),) * 7).encode(),
            ),
            ("index", "an index beyond its path", dataclasses.replace(good, index=1).encode()),
            ("cut", "a bundle that ends inside its request", raw[: size // 2]),
            ("no-signature", "a bundle without a signature", raw[: 6 + size]),
            ("path-cut", "a path that is longer than the bundle", b"\1\6" + raw[2 : 6 + size]),
            ("no-request", "a request of no byte", b"\1\0\0\0\0\0" + good.signature),
            ("too-long", "a request of 1025 bytes", self.bundle(long).encode()),
            ("length", "a request that is longer than the bundle", raw[:4] + b"\3\xff" + raw[6:]),
        ):
            message = self.seal(broken, "host", "--compress-algo", "zip")
            yield f"bundle-{name}", why, "bundle", wrapped(message, TO_HOST)

    def signatures(self) -> Iterator[Made]:
        keys, request = self.keys, self.request()
        batch, good = Batch.of([request]), self.bundle(request)
        two = Batch.of([request, self.request()])
        other = self.bundle(self.request())
        bare = Bundle(request, 0, (), b"")

        def having(signature: bytes, **more: object) -> bytes:
            return dataclasses.replace(good, signature=signature, **more).encode()

        again = keys.sign("bob", batch.to_sign)
        dave = keys.sign("dave", batch.to_sign)
        certificate = pgp.packets(pgp.gpg(keys.home("bob"), "--export"))[2]
        inline = pgp.gpg(keys.home("bob"), "--sign", *BARE, data=batch.to_sign, now=MADE)
        path = two.bundle(0, b"").path
        for name, why, broken in (
            ("none", "no signature but a byte", having(b"\0")),
            ("noise", "noise for a signature", having(secrets.token_bytes(119))),
            (
                "unknown",
                "a key that the host doesn't know",
                self.bundle(request, "stranger").encode(),
            ),
            ("revoked", "a revoked key", self.bundle(request, "revoked").encode()),
            ("expired-key", "an expired key", self.bundle(request, "expired").encode()),
            ("unable", "a key that may not sign", self.bundle(request, "unable").encode()),
            (
                "unlisted",
                "a key in the keyring that the policy doesn't name",
                self.bundle(request, "unlisted").encode(),
            ),
            (
                "status-line",
                "a user id that reads as a status line about bob",
                self.bundle(request, "sly").encode(),
            ),
            (
                "expired",
                "an expired signature",
                self.bundle(request, "bob", "--default-sig-expire", "1d").encode(),
            ),
            ("twice", "the same signature twice", having(good.signature * 2)),
            ("two", "two signatures by one operator", having(good.signature + again)),
            ("two-operators", "signatures by two operators", having(good.signature + dave)),
            (
                "one-unknown",
                "a good signature and one by a key that nobody knows",
                having(good.signature + keys.sign("stranger", batch.to_sign)),
            ),
            (
                "text-mode",
                "a signature of text, in any line ends",
                self.bundle(request, "bob", "--textmode").encode(),
            ),
            ("trailing", "junk behind the signature", having(good.signature + b"junk")),
            ("certificate", "the signature of bob's key on itself", having(certificate)),
            ("inline", "a signed message for a detached signature", having(inline)),
            (
                "no-prefix",
                "a signature of the root without what tells a batch",
                having(keys.sign("bob", batch.levels[-1][0])),
            ),
            ("of-request", "a signature of the request itself", having(keys.sign("bob", request))),
            ("other-root", "the root of another batch", having(other.signature)),
            (
                "wrong-path",
                "a path that leads to another root",
                having(keys.sign("bob", two.to_sign), path=(bytes(16),)),
            ),
            (
                "wrong-index",
                "the right path from the wrong side",
                having(keys.sign("bob", two.to_sign), path=path, index=1),
            ),
            (
                "node",
                "an inner node for a request",
                Bundle(
                    two.levels[0][0] + two.levels[0][1], 0, (), keys.sign("bob", two.to_sign)
                ).encode(),
            ),
            (
                "sibling",
                "a request that isn't in the batch",
                dataclasses.replace(bare, request=self.request(), signature=again).encode(),
            ),
        ):
            yield f"signature-{name}", why, "signature", self.picture(broken)

    def json(self) -> Iterator[Made]:
        good = json.loads(self.request())
        for name, why, raw in odd_json(good, self.fields(good)):
            message = self.seal(self.bundle(raw).encode(), "host", "--compress-algo", "zip")
            yield f"json-{name}", why, "json", wrapped(message, TO_HOST)

    @staticmethod
    def fields(good: dict) -> Iterator[tuple[str, str, dict]]:
        yield "do", "an action that doesn't exist", {"do": "reboot"}
        yield "do-type", "an action that is a list", {"do": ["open"]}
        yield "what-text", "a name where a list of names belongs", {"what": "ssh"}
        yield "what-many", "more names than any host has", {"what": ["a"] * 33}
        yield "what-path", "a name that is a path", {"what": ["../ssh"]}
        yield "what-line", "a name with a line end, which $ lets pass", {"what": ["ssh\n"]}
        yield "what-unicode", "a name in full-width letters", {"what": ["\uff53sh"]}
        yield "for-zero", "a lease of no second", {"for": 0}
        yield "for-negative", "a lease of less than none", {"for": -30}
        yield "for-long", "a lease of a thousand years", {"for": 31_557_600_000}
        yield "for-bool", "true for a number", {"for": True}
        yield "args-list", "a list for a mapping", {"args": ["a"]}
        yield "args-number", "a number for a text", {"args": {"a": 1}}
        yield "to-short", "fifteen bytes of a fingerprint", {"to": to_b64(bytes(15))}
        yield "id-padded", "a second spelling of the id", {"id": good["id"] + "=="}
        yield (
            "id-bits",
            "an id with bits behind its last byte",
            {"id": to_b64(bytes(15) + b"\0")[:-1] + "B"},
        )
        yield "id-alphabet", "the other alphabet of base64", {"id": "+" * 21 + "w"}
        yield "id-null", "null for an id", {"id": None}
        yield "src-name", "a name for an address", {"src": "localhost"}
        yield "src-zone", "an address with a zone of any text", {"src": "fe80::1%\x1b[31m"}
        yield "src-number", "a number for an address", {"src": 167_772_161}
        yield "time-negative", "a time before 1970", {"t": -1}
        yield "time-float", "a time with a fraction", {"t": CLOCK + 0.5}
        yield "time-text", "a time as text", {"t": str(CLOCK)}
        yield "time-far", "a time beyond any", {"t": 1 << 41}

    def meanings(self) -> Iterator[Made]:
        other = bytes.fromhex(self.keys.fingerprints["other"])[:16]
        yield (
            "host-other",
            "signed for another host, by whose thief it is sealed to this one",
            "host",
            self.picture(self.good(to=other)),
        )
        for name, t in (
            ("late", CLOCK - 61),
            ("early", CLOCK + 61),
            ("very-late", CLOCK - 86_400),
        ):
            yield (
                f"time-{name}",
                f"a request of {t - CLOCK:+d} s",
                "time",
                self.picture(self.good(t=t)),
            )
        yield (
            "address-other",
            "caught on the way, sent from elsewhere",
            "address",
            self.picture(self.good(src="198.51.100.9")),
        )
        yield (
            "address-mapped",
            "an IPv4 address written as IPv6",
            "address",
            self.picture(self.good(src="::ffff:10.77.0.2")),
        )
        yield (
            "address-ipv6",
            "an address of the other family",
            "address",
            self.picture(self.good(src="fd77::2")),
        )

    def controls(self) -> Iterator[Made]:
        yield "good", "control: a good knock", "yes", self.picture(self.good())
        yield (
            "good-source",
            "control: from the address that it names",
            "yes",
            self.picture(self.good(src="10.77.0.2")),
        )
        inner = pgp.compressed(pgp.literal(self.good()))
        yield (
            "good-compressed",
            "control: anybody with the card may compress what is signed",
            "yes",
            wrapped(self.sealer.seal(inner), TO_HOST),
        )
        batch = Batch.of([self.request() for _ in range(64)])
        last = batch.bundle(63, self.keys.sign("bob", batch.to_sign))
        yield "good-batch", "control: the last of 64 requests", "yes", self.picture(last.encode())

    def replays(self) -> Iterator[tuple[Made, Made]]:
        """Pairs: what is accepted, and what is refused then because its id was used."""
        for name, why, change in (
            ("rewrapped", "the same message in another picture", None),
            ("sealed-again", "the same bundle, encrypted again by who has the card", "seal"),
            ("armoured", "the same bundle with its signature in ASCII armour", "armour"),
            ("signed-again", "the same request, signed again", "sign"),
            ("in-a-batch", "the same request in another batch", "batch"),
        ):
            request = self.request()
            bundle = self.bundle(request)
            sealed = self.seal(bundle.encode())
            again = sealed
            if change == "seal":
                again = self.seal(bundle.encode())
            if change == "armour":
                armour = pgp.gpg(self.keys.home("bob"), "--enarmor", data=bundle.signature)
                text = armour.replace(b"ARMORED FILE", b"SIGNATURE")
                again = self.seal(
                    dataclasses.replace(bundle, signature=text).encode(),
                    "host",
                    "--compress-algo",
                    "zip",
                )
            if change == "sign":
                again = self.seal(self.bundle(request, now=LATER).encode())
            if change == "batch":
                batch = Batch.of([request, self.request()])
                again = self.seal(batch.bundle(0, self.keys.sign("bob", batch.to_sign)).encode())
            yield (
                (
                    f"good-before-{name}",
                    "control: the knock that is replayed",
                    "yes",
                    wrapped(sealed, TO_HOST),
                ),
                (f"ledger-{name}", why, "ledger", wrapped(again, TO_HOST)),
            )


def odd_json(
    good: dict, changes: Iterator[tuple[str, str, dict]]
) -> Iterator[tuple[str, str, bytes]]:
    """Return JSON that isn't quite what it must be, as bytes."""
    text = json.dumps(good, separators=(",", ":"))
    yield "empty-object", "an object without fields", b"{}"
    yield "list", "a list for an object", f"[{text}]".encode()
    yield "null", "null for an object", b"null"
    yield "text", "a text for an object", b'"open"'
    yield "cut", "JSON that is cut short", text[:-1].encode()
    yield "trailing", "something behind the object", (text + "x").encode()
    yield "two", "a second object", (text + text).encode()
    yield "unknown-field", "a field that nobody knows", json.dumps(good | {"extra": 1}).encode()
    yield "duplicate", "a field given twice", (text[:-1] + ',"v":1}').encode()
    yield (
        "duplicate-spelt",
        "a field given twice, once in escapes",
        (text[:-1] + ',"\\u0076":1}').encode(),
    )
    for name in ("v", "t"):
        yield (
            f"without-{name}",
            f"no {name}",
            json.dumps({k: v for k, v in good.items() if k != name}).encode(),
        )
    yield "version", "a version that doesn't exist", json.dumps(good | {"v": 2}).encode()
    yield "version-bool", "true for 1", json.dumps(good | {"v": True}).encode()
    yield "version-float", "1.0 for 1", json.dumps(good | {"v": 1.0}).encode()
    yield "huge", "a number of 400 digits", text.replace(str(CLOCK), "9" * 400).encode()
    yield "exponent", "1e999999 for a number", text.replace(str(CLOCK), "1e999999").encode()
    yield "nan", "NaN", text.replace(str(CLOCK), "NaN").encode()
    yield "infinity", "-Infinity", text.replace(str(CLOCK), "-Infinity").encode()
    yield (
        "deep",
        "a list in a list, 400 deep",
        (text[:-1] + ',"x":' + "[" * 400 + "]" * 400 + "}").encode(),
    )
    yield "not-utf-8", "bytes that aren't UTF-8", text.replace("ssh", "\xff").encode("latin-1")
    yield "overlong", "an overlong form of UTF-8", text.encode().replace(b"ssh", b"\xc1\xb3sh")
    yield "bom", "a byte order mark", b"\xef\xbb\xbf" + text.encode()
    yield "utf-16", "UTF-16", text.encode("utf-16-le")
    yield "surrogate", "half a character", (text[:-1] + ',"args":{"a":"\\ud800"}}').encode()
    yield "nul", "a zero byte in a name", text.replace("ssh", "ss\\u0000h").encode()
    yield "key-type", "a number for a field's name", (text[:-1] + ",1:1}").encode()
    yield "comment", "a comment", (text[:-1] + "/**/}").encode()
    yield "single-quotes", "single quotes", text.replace('"', "'").encode()
    for name, why, change in changes:
        yield name, why, json.dumps(good | change).encode()


class Receipts:
    """What arrives at a client: from a host that lies, or from somebody at its address."""

    def __init__(self, keys: Keyring) -> None:
        self.keys = keys
        self.host = openpgp.HostKey.load(keys.home("host"))

    def receipt(self, **change: object) -> dict:
        fields = {
            "re": REQUEST_ID,
            "t": CLOCK,
            "ok": True,
            "code": Code.OPENED,
            "seen": "10.77.0.2",
        }
        good = json.loads(
            Receipt(**(fields | {"policy": 7, "leases": {"ssh": CLOCK + 30}})).encode()
        )
        return good | change

    def seal(self, raw: bytes, *more: str, by: str = "host", key: str = PASSPHRASE) -> bytes:
        signs = ["--sign", "--local-user", self.keys.fingerprints[by]] if by else []
        words = ["--pinentry-mode", "loopback", "--passphrase", key, "--s2k-mode", "0", *BARE]
        words += [*signs, *more, "--symmetric", "--cipher-algo", "AES256"]
        return pgp.gpg(self.keys.home(by or "host"), *words, data=raw, now=MADE)

    def crafted(self, inner: bytes, **how: bool) -> bytes:
        """Encrypt any packets under the request's id."""
        sealed = self.seal(b"x", by="")
        key = pgp.session_key(self.keys.home("host"), sealed, "--passphrase", PASSPHRASE)
        return pgp.packets(sealed)[0] + pgp.encrypted(key, inner, **how)

    def openpgp(self) -> Iterator[Made]:
        raw = json.dumps(self.receipt()).encode()
        good = self.seal(raw)
        host = self.keys.home("host")
        signed = pgp.gpg(host, "--sign", *BARE, data=raw, now=MADE)
        text = pgp.gpg(host, "--sign", "--textmode", *BARE, data=raw, now=MADE)
        bomb = pgp.compressed(pgp.literal(bytes(400_000)))
        sealed = pgp.gpg(
            host,
            "--trust-model",
            "always",
            *BARE,
            "-R",
            self.host.fingerprint,
            "--encrypt",
            data=raw,
        )
        craft = self.crafted
        openpgp_layer = (
            ("noise", "noise", secrets.token_bytes(300)),
            ("echo", "what the client sent, sent back", sealed),
            ("signed-only", "signed, and readable by everybody", signed),
            ("unsigned", "encrypted, and not signed", self.seal(raw, by="")),
            ("other-passphrase", "under the id of another request", self.seal(raw, key="A" * 22)),
            ("cut", "half of a receipt", good[: len(good) // 2]),
            ("flip", "a bit flipped", pictures.flip(good, -40)),
            ("twice", "the receipt twice", good + good),
            ("trailing", "junk behind the receipt", good + b"junk"),
            (
                "two-literals",
                "a literal behind what is signed",
                craft(signed + pgp.literal(b"more")),
            ),
            ("literal-first", "a literal before what is signed", craft(pgp.literal(raw) + signed)),
            ("nested", "a receipt in a receipt", craft(good)),
            ("no-mdc", "no modification detection code", craft(signed, mdc=False)),
            ("bad-mdc", "a wrong modification detection code", craft(signed, damage=True)),
            ("bomb", "what inflates to 400,000 bytes", craft(bomb)),
            (
                "signed-bomb",
                "a signed receipt of 400,000 bytes",
                self.seal(bytes(400_000), "--compress-algo", "bzip2"),
            ),
            ("text-mode", "signed as text", craft(text)),
            ("signed-by-other", "signed by another key", self.seal(raw, by="other")),
            ("signed-by-operator", "signed by an operator's key", self.seal(raw, by="bob")),
            (
                "two-signatures",
                "signed by two keys",
                craft(
                    _signed_twice(
                        signed, pgp.gpg(self.keys.home("bob"), "--sign", *BARE, data=raw, now=MADE)
                    )
                ),
            ),
            (
                "expired-signature",
                "an expired signature",
                self.seal(raw, "--default-sig-expire", "1d"),
            ),
        )
        for name, why, message in openpgp_layer:
            yield f"openpgp-{name}", why, "openpgp", wrapped(message, TO_CLIENT)

    def json(self) -> Iterator[Made]:
        good = self.receipt()
        for name, why, raw in odd_json(good, self.fields()):
            sealed = self.seal(raw, "--compress-algo", "zip")
            yield f"json-{name}", why, "json", wrapped(sealed, TO_CLIENT)

    @staticmethod
    def fields() -> Iterator[tuple[str, str, dict]]:
        yield "ok-number", "1 for true", {"ok": 1}
        yield "code", "a code that doesn't exist", {"code": "fine"}
        yield "seen", "an address that isn't one", {"seen": "everywhere"}
        yield "seen-zone", "an address with a zone of any text", {"seen": "fe80::1%\x1b[31m"}
        yield "policy", "no policy's number", {"policy": 0}
        yield "lease-text", "a lease until text", {"leases": {"ssh": "tomorrow"}}
        yield "lease-name", "a lease for what isn't a name", {"leases": {"\x1b[31m": 1}}
        yield "terminal", "colours for the terminal", {"detail": "\x1b[31mall is well"}
        yield "lines", "a second line for the table", {"detail": "no\nweb2  opened"}
        yield "right-to-left", "text that turns the line around", {"detail": "\u202eopened"}
        yield "exit", "an exit status that no process has", {"exit": 100_000}

    def meanings(self) -> Iterator[Made]:
        other = to_b64(b"another  request")
        raw = json.dumps(self.receipt(re=other)).encode()
        yield (
            "receipt-other",
            "a receipt for another request",
            "receipt",
            wrapped(self.seal(raw), TO_CLIENT),
        )
        yield "good", "control: a good receipt", "yes", self.good()

    def good(self) -> bytes:
        return wrapped(self.seal(json.dumps(self.receipt()).encode()), TO_CLIENT)


def _signed_twice(one: bytes, two: bytes) -> bytes:
    """Nest one-pass signatures (RFC 4880, 5.4): the first is not the last, its own flag says."""
    first, literal, signature = pgp.packets(one)
    second, _, other = pgp.packets(two)
    outer = second[:-1] + b"\0"
    return outer + first + literal + signature + other


def shared(good: bytes, to: str) -> Iterator[tuple[Made, str]]:
    """Yield pictures and texts, which meet the same code in both directions."""
    way = TO_HOST if to == "agent" else TO_CLIENT
    for made in pictures.unproven(good, way):
        yield made, "none"
    for name, why, layer, raw in [*pictures.pictures(), *pictures.texts(way)]:
        yield (name, why, layer, pictures.stamped(raw, way)), "good"


def attacks(keys: Keyring) -> Iterator[Attack]:
    knocks, receipts = Knocks(keys), Receipts(keys)
    for (name, why, layer, raw), proof in shared(knocks.picture(knocks.good()), "agent"):
        yield Attack(name, why, "agent", raw, layer, proof=proof)
    for name, why, layer, raw in pictures.packets(knocks.picture(knocks.good())):
        yield Attack(name, why, "agent", raw, layer, form="packet", proof="none")
    kinds: list[Callable[[], Iterator[Made]]] = [knocks.controls, knocks.openpgp, knocks.bundles]
    kinds += [knocks.signatures, knocks.json, knocks.meanings]
    for kind in kinds:
        for name, why, layer, raw in kind():
            yield Attack(name, why, "agent", raw, layer)
    for before, after in knocks.replays():
        yield Attack(before[0], before[1], "agent", before[3], before[2])
        yield Attack(after[0], after[1], "agent", after[3], after[2], after=before[0])
    for (name, why, layer, raw), proof in shared(receipts.good(), "client"):
        yield Attack(name, why, "client", raw, layer, proof=proof)
    for kind in (receipts.openpgp, receipts.json, receipts.meanings):
        for name, why, layer, raw in kind():
            yield Attack(name, why, "client", raw, layer)


def with_reason(attack: Attack, read: Callable[[Attack], tuple[str, str]]) -> Attack:
    layer, reason = read(attack)
    if layer != attack.layer:
        sys.exit(f"{attack.to}/{attack.name}: {layer} ({reason}), not {attack.layer}")
    return dataclasses.replace(attack, reason=reason)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="tq", dir="/tmp") as base:
        keys = keyring(Path(base))
        made = list(attacks_before_the_end_of_keys(keys))
        keys.revoke("revoked")
        keys.forbid_signing("unable")
        keys.store()
        with Agent(Path(base) / "a") as agent, Client() as client:
            readers = {"agent": agent.deliver, "client": client.read}
            made = [with_reason(attack, readers[attack.to]) for attack in made]
        for to in readers:
            shutil.rmtree(corpus.HERE / to, ignore_errors=True)
        for attack in made:
            attack.save()
        print(f"{len(made)} files")
        for name in keys.fingerprints:
            openpgp.stop_agent(keys.home(name))


def attacks_before_the_end_of_keys(keys: Keyring) -> Iterator[Attack]:
    """All signatures are made before keys are revoked, and long before they expire."""
    names = set()
    for attack in attacks(keys):
        assert (attack.to, attack.name) not in names, attack.name
        names.add((attack.to, attack.name))
        yield attack


if __name__ == "__main__":
    main()
