"""Files: whole or not there, of known kinds, read within bounds; and temporary folders."""

from resnext_core.files.atomic import (
    atomic_path as atomic_path,
)
from resnext_core.files.atomic import (
    cache_folder as cache_folder,
)
from resnext_core.files.atomic import (
    check_folder as check_folder,
)
from resnext_core.files.atomic import (
    check_target as check_target,
)
from resnext_core.files.atomic import (
    existing_folder as existing_folder,
)
from resnext_core.files.atomic import (
    file_digest as file_digest,
)
from resnext_core.files.atomic import (
    files_digest as files_digest,
)
from resnext_core.files.atomic import (
    fsync as fsync,
)
from resnext_core.files.atomic import (
    local_path as local_path,
)
from resnext_core.files.atomic import (
    make_folder as make_folder,
)
from resnext_core.files.atomic import (
    place_folder as place_folder,
)
from resnext_core.files.atomic import (
    replace_file as replace_file,
)
from resnext_core.files.atomic import (
    write_atomic as write_atomic,
)
from resnext_core.files.places import Place as Place
from resnext_core.files.places import Url as Url
from resnext_core.files.places import absolute as absolute
from resnext_core.files.places import is_url as is_url
from resnext_core.files.places import place as place
