() => {
  // A key that only this tab knows: a reload finds it again, a duplicated tab does not.
  const kept = sessionStorage.getItem('workbench-visit');
  sessionStorage.removeItem('workbench-visit');
  const fresh = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (one) => one.toString(16).padStart(2, '0')).join('');
  window.workbenchVisit ??= kept ?? fresh();
  addEventListener('pagehide', () => sessionStorage.setItem('workbench-visit', window.workbenchVisit));
  const form = localStorage.getItem('workbench-form') ?? '';
  return [document.body.classList.contains('dark') ? 'dark' : 'light', window.workbenchVisit, form];
}
