"""The Flower shim: hands request bytes to the steward and reply bytes back, and knows nothing else.

Flower lets the coordinator choose the code that runs here, so nothing that matters may rest on it: no vault, no key, no
base model. It works with ``common`` alone.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from common.errors import DarkroomError, DataError, StewardUnavailable
from common.wire.messages import ACTION, FIELD, RECORD, Refusal, RefusalCode, encode
from common.wire.steward_link import ClientCertificate, StewardAddress, StewardLink, read_token

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flwr.app import Context

    from common.wire.messages import StewardPort

ADDRESS_KEY: Final = "steward"
"""Key of the SuperNode's ``--node-config`` that names the steward: ``unix:///path``, or ``host:port``."""
TOKEN_KEY: Final = "token"  # noqa: S105 - a name, not a token
"""Key that names the file with the site's token."""
_AUTHORITY_KEY: Final = "steward-ca"
_CERTIFICATE_KEY: Final = "steward-certificate"
_PRIVATE_KEY_KEY: Final = "steward-key"

_log = logging.getLogger(__name__)


def make_client_app(connect: Callable[[Context], StewardPort]) -> ClientApp:
    """A ClientApp that answers every message with the words of the steward that ``connect`` finds.

    Guarantee: whatever ``connect`` or the steward raises, the coordinator gets an encoded ``Refusal`` with a code and
    no text of ours, because Flower would send an exception's text, local paths included, to the coordinator. The
    details go to this site's log.
    """
    app = ClientApp()

    @app.query(ACTION)
    def ask(message: Message, context: Context) -> Message:
        return Message(_content(_answer(message, context, connect)), reply_to=message)

    return app


def _connect_deployed(context: Context) -> StewardPort:
    """The steward that this SuperNode's own ``--node-config`` names; the coordinator has no say in it."""
    setting = context.node_config
    tls = None
    if _AUTHORITY_KEY in setting:
        tls = ClientCertificate(
            authority=_path(setting, _AUTHORITY_KEY),
            certificate=_path(setting, _CERTIFICATE_KEY),
            key=_path(setting, _PRIVATE_KEY_KEY),
        )
    token = read_token(_path(setting, TOKEN_KEY))
    return StewardLink(address=StewardAddress(target=str(setting.get(ADDRESS_KEY, "")), token=token, tls=tls))


def _path(setting: Mapping[str, object], key: str) -> Path:
    value = setting.get(key)
    if not isinstance(value, str) or not value:
        raise StewardUnavailable(f'--node-config: wanted {key}="/path" together with {ADDRESS_KEY}="unix:///path"')
    return Path(value)


def _answer(message: Message, context: Context, connect: Callable[[Context], StewardPort]) -> bytes:
    try:
        request = _request_of(message)
        if request is None:
            _log.error("refused a message without request bytes")
            return encode(Refusal(code=RefusalCode.MALFORMED))
        return _checked(connect(context).answer(request))
    except StewardUnavailable as error:
        _log.error("refused: %s", error)
        return encode(Refusal(code=RefusalCode.NOT_ALLOWED))
    except (DarkroomError, OSError) as error:  # as on a full disk: its words say what to do, a stack trace does not
        # what is wrong with pictures may quote them
        _log.error("the steward could not answer: %s", type(error).__name__ if isinstance(error, DataError) else error)
        return encode(Refusal(code=RefusalCode.INTERNAL))
    except (Exception, SystemExit):  # noqa: BLE001 - an exception's text would reach the coordinator
        # SystemExit too: a library that exits would end Flower's process, which reports more to the coordinator
        _log.exception("the steward could not answer")
        return encode(Refusal(code=RefusalCode.INTERNAL))


def _request_of(message: Message) -> bytes | None:
    if not message.has_content():
        return None
    record = message.content.config_records.get(RECORD)
    request = None if record is None else record.get(FIELD)
    return request if isinstance(request, bytes) else None


def _checked(reply: object) -> bytes:
    if not isinstance(reply, bytes):
        raise TypeError(f"the steward answered with {type(reply).__name__}; wanted bytes")
    return reply


def _content(reply: bytes) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({FIELD: reply})})


app = make_client_app(_connect_deployed)
"""What Flower loads in a deployment."""
