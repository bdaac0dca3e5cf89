from django.utils.translation import gettext_lazy as _

from raksha.client import errors

# The slug of the panel group to be added. Required.
PANEL_GROUP = "data_protection"
PANEL_GROUP_NAME = _("Data Protection")
PANEL_GROUP_DASHBOARD = "project"

ADD_INSTALLED_APPS = ["raksha_dashboard"]
ADD_SCSS_FILES = ["raksha_dashboard/raksha.scss"]
ADD_JS_FILES = ["raksha_dashboard/raksha.js"]
ADD_EXCEPTIONS = {
    "recoverable": (errors.ClientError,),
    "not_found": (errors.NotFound, errors.NoSuch),
    "unauthorized": (errors.NotAuthenticated, errors.NotLoggedIn),
}
