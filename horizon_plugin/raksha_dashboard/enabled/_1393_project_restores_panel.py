PANEL = "protection_restores"
PANEL_DASHBOARD = "project"
PANEL_GROUP = "data_protection"
ADD_PANEL = "raksha_dashboard.restores.panel.Restores"
