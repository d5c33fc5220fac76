"""Every setting, read once from the environment and ``.env``, checked together, reported together."""

from broker.settings.addresses import (
    http_url,
    is_loopback,
    is_origin,
    is_this_machine,
    masked,
    not_an_origin,
    origin_of,
    web_address,
)
from broker.settings.checks import problems, warnings
from broker.settings.env_file import troubles as env_file_troubles
from broker.settings.fields import COZE_FILE_TYPES, PUBLISHABLE_PREFIX, SECRET_PREFIX, Settings
from broker.settings.oauth_app import OAuthApp
from broker.settings.proxy import Proxy
from broker.settings.proxy import masked as masked_proxy
from broker.settings.reading import SettingsError, load, load_for_store, read, source_of
from broker.settings.way_checks import doh_problems, without_refused
from broker.settings.weak_secrets import weakness

__all__ = [
    "COZE_FILE_TYPES",
    "PUBLISHABLE_PREFIX",
    "SECRET_PREFIX",
    "OAuthApp",
    "Proxy",
    "Settings",
    "SettingsError",
    "doh_problems",
    "env_file_troubles",
    "http_url",
    "is_loopback",
    "is_origin",
    "is_this_machine",
    "load",
    "load_for_store",
    "masked",
    "masked_proxy",
    "not_an_origin",
    "origin_of",
    "problems",
    "read",
    "source_of",
    "warnings",
    "weakness",
    "web_address",
    "without_refused",
]
