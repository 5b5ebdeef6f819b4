"""The installed plugins: found through entry points, checked one by one, and kept in one dictionary a kind."""

from resnext_core.extras import CORE as CORE
from resnext_core.plugins.loading import collect as collect
from resnext_core.plugins.loading import get_backend as get_backend
from resnext_core.plugins.loading import load_plugins as load_plugins
from resnext_core.plugins.offers import AUTO as AUTO
from resnext_core.plugins.offers import PluginSet as PluginSet
from resnext_core.plugins.offers import probe as probe
from resnext_core.plugins.offers import probe_file as probe_file
from resnext_core.plugins.offers import probe_format as probe_format
