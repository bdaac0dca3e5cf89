/* Two small things that Horizon has nothing for. Without this file all pages work, but for previews and fresh progress.
 *
 *   data-raksha-preview="URL"  inside of a form: filled with what URL answers for the form's values, as they change
 *   data-raksha-live="URL"     filled anew every few seconds, until the answer has data-raksha-ended
 */
(function () {
  'use strict';
  var PAUSE = 400, INTERVAL = 3000;

  function values(form) {
    var data = new URLSearchParams();
    new FormData(form).forEach(function (value, name) {
      if (name !== 'csrfmiddlewaretoken' && typeof value === 'string') { data.append(name, value); }
    });
    return data.toString();
  }

  function fetched(url) {
    return fetch(url, {credentials: 'same-origin', headers: {'X-Requested-With': 'XMLHttpRequest'}}).then(function (answer) {
      if (!answer.ok || answer.redirected) { throw new Error(String(answer.status)); }
      return answer.text();
    });
  }

  function preview(place) {
    var form = place.closest('form'), query = values(form);
    if (place.rakshaShown === query) { return; }
    place.rakshaShown = query;
    fetched(place.getAttribute('data-raksha-preview') + '?' + query).then(function (html) {
      // an answer to what was asked before the last change is too late
      if (place.rakshaShown === query) { place.innerHTML = html; }
    }).catch(function () { place.rakshaShown = null; place.textContent = '–'; });
  }

  function previews(form) {
    clearTimeout(form.rakshaTimer);
    form.rakshaTimer = setTimeout(function () {
      form.querySelectorAll('[data-raksha-preview]').forEach(function (place) {
        if (place.offsetParent !== null) { preview(place); }
      });
    }, PAUSE);
  }

  function all() {
    document.querySelectorAll('[data-raksha-preview]').forEach(function (place) { previews(place.closest('form')); });
  }

  function live(place) {
    fetched(place.getAttribute('data-raksha-live')).then(function (html) {
      place.innerHTML = html;
      if (place.querySelector('[data-raksha-ended]')) { window.location.reload(); } else { again(place); }
    }).catch(function () { again(place); });
  }

  function again(place) { setTimeout(function () { live(place); }, INTERVAL); }

  ['change', 'input'].forEach(function (kind) {
    document.addEventListener(kind, function (event) {
      var form = event.target.closest && event.target.closest('form');
      if (form && form.querySelector('[data-raksha-preview]')) { previews(form); }
    });
  });
  (window.$ || window.addHorizonLoadEvent)(function () {
    // a step of a workflow was turned to, or a dialog has opened
    $(document).on('shown.bs.tab shown.bs.modal', all);
    all();
    document.querySelectorAll('[data-raksha-live]').forEach(again);
  });
}());
