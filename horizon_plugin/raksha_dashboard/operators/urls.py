from django.urls import path

from raksha_dashboard.operators import views

urlpatterns = [path("", views.IndexView.as_view(), name="index")]
