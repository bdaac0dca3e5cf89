from django.urls import path

from raksha_dashboard.jobs import views
from raksha_dashboard.runs import views as runs

urlpatterns = [
    path("", views.IndexView.as_view(), name="index"),
    path("create/", views.CreateView.as_view(), name="create"),
    path("schedule-preview/", views.SchedulePreviewView.as_view(), name="schedule_preview"),
    path("retention-preview/", views.RetentionPreviewView.as_view(), name="retention_preview"),
    path("<str:job_id>/", views.DetailView.as_view(), name="detail"),
    path("<str:job_id>/update/", views.UpdateView.as_view(), name="update"),
    path("<str:job_id>/runs/<str:run_id>/", runs.RunView.as_view(), name="run"),
    path("<str:job_id>/runs/<str:run_id>/live/", runs.LiveView.as_view(), name="run_live"),
    path("<str:job_id>/runs/<str:run_id>/restore/", runs.RestoreView.as_view(), name="restore"),
    path("<str:job_id>/runs/<str:run_id>/restore/plan/", runs.PlanView.as_view(), name="restore_plan"),
]
