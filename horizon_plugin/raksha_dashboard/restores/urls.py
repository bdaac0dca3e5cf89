from django.urls import path

from raksha_dashboard.restores import views

urlpatterns = [
    path("", views.IndexView.as_view(), name="index"),
    path("<str:restore_id>/", views.DetailView.as_view(), name="detail"),
    path("<str:restore_id>/live/", views.LiveView.as_view(), name="live"),
]
