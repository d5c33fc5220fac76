"""Every setting, read once from the environment and ``.env``, checked together, reported together."""

from broker.settings.addresses import http_url, is_loopback, is_origin, not_an_origin, origin_of
from broker.settings.checks import problems, warnings
from broker.settings.fields import COZE_FILE_TYPES, PUBLISHABLE_PREFIX, SECRET_PREFIX, Settings
from broker.settings.oauth_app import OAuthApp
from broker.settings.proxy import Proxy, masked
from broker.settings.reading import SettingsError, load, load_for_store, read, source_of
from broker.settings.weak_secrets import weakness

__all__ = [
    "COZE_FILE_TYPES",
    "PUBLISHABLE_PREFIX",
    "SECRET_PREFIX",
    "OAuthApp",
    "Proxy",
    "Settings",
    "SettingsError",
    "http_url",
    "is_loopback",
    "is_origin",
    "load",
    "load_for_store",
    "masked",
    "not_an_origin",
    "origin_of",
    "problems",
    "read",
    "source_of",
    "warnings",
    "weakness",
]
