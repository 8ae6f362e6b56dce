"""An nginx configuration that does what ``server.flower.listener`` does: the Fleet API passes, all else is not found.

nginx matches ``location`` against a decoded and cleaned path but passes the path as it was sent. So what passes is
decided on the bytes as sent, by the table that the embedded listener has, too, and only the part that was matched is
sent on, without query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from common.errors import ConfigError
from server.flower.listener import PASSED

if TYPE_CHECKING:
    from server.federation.directory import FederationConfig, FederationDirectory

_TEMPLATE: Final = """\
# Made by: darkroom-server nginx. Include it in the http block of nginx.conf, then: nginx -t && nginx -s reload
# Flower's interfaces are HTTP/1.1; there is no gRPC to pass.

# What passes, by method and path as sent. Anything else has an empty value.
map "$request_method $request_uri" $darkroom_passed {{
    default "";
{passed}
}}

log_format darkroom '$remote_addr $request_method $darkroom_passed $status $request_length $request_time';

upstream darkroom_superlink {{
    server 127.0.0.1:{superlink_port};
    keepalive 32;
}}

server {{
    listen {listen}:{public_port} ssl;
    server_name {host};
    server_tokens off;
    access_log /var/log/nginx/darkroom.log darkroom;

    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_tickets off;

    client_max_body_size {body}m;
    client_body_timeout 60s;
    client_header_timeout 15s;
    large_client_header_buffers 4 16k;
    keepalive_timeout 75s;

    location / {{
        if ($darkroom_passed = "") {{
            return 404;
        }}
        proxy_pass https://darkroom_superlink$darkroom_passed;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host localhost;
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_read_timeout 60s;
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_ssl_trusted_certificate {authority};
    }}
}}
"""


def nginx_configuration(directory: FederationDirectory, config: FederationConfig) -> str:
    """The file's text.

    Raises:
        ConfigError: A path that nginx could read otherwise.

    """
    public = directory.public
    listen = f"[{config.listen}]" if ":" in config.listen else config.listen
    return _TEMPLATE.format(
        passed="\n".join(
            f'    "~^{passed.method} (?<darkroom_{number}>{passed.path})(?:\\?|\\z)" $darkroom_{number};'
            for number, passed in enumerate(PASSED)
        ),
        superlink_port=config.superlink_port,
        listen=listen,
        host=config.address.rpartition(":")[0],  # an IPv6 address in its brackets, as nginx compares it
        public_port=config.public_port,
        certificate=_path(str(public.certificate)),
        key=_path(str(public.key)),
        # the SuperLink's own certificate is always by the authority that was made with the federation
        authority=_path(str(directory.file("ca.crt"))),
        body=config.maximum_body_mib,
    )


def _path(text: str) -> str:
    if any(character in "\"'\\$;{}#" or ord(character) < 33 for character in text):
        raise ConfigError(f"{text!r}: nginx cannot be given this path safely; move the federation's directory")
    return text
