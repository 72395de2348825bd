(** Theorem A: the fixed step. The corrected Theorem 4.1 of arXiv 2401.04151. *)

From FrankWolfe Require Import setting assumptions lemmas huber.

(** Telescoped: for every step size [e] in (0, 1]. *)
Definition telescoped : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D e : R),
  Setting P run -> Diameter P D ->
  Static P -> FrankWolfeStep P run true -> ConstantStep P run false e ->
  mean (gap run) (T run) <= decrease P run / (e * INR (T run)) + beta P * D ^ 2 * e / 2 + mean (eps run) (T run).

(** [B_T(M)]: [sqrt (2 M beta) D/sqrt T] for [T >= 2 M/(beta D^2)], and [M/T + beta D^2/2] below. *)
Definition value (M C T : R) : R := phi_inverse (M / T) C.

(** Closed: with [e = min(1, sqrt(2 M/(beta D^2 T)))]. *)
Definition statement : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M : R),
  Setting P run -> Diameter P D -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run true -> ConstantStep P run false (best_fixed M (beta P * D ^ 2) (INR (T run))) ->
  mean (gap run) (T run) <= value M (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

(** * Proof *)

(** The sum of (one step), divided by [e]: what the falls, the curvature and the oracle leave. Theorem E uses it too. *)
Lemma summed {E : InnerProductSpace} (P : Problem E) (run : Run E) D e :
  Setting P run -> Diameter P D -> FrankWolfeStep P run true -> ConstantStep P run false e ->
  mean (gap run) (T run) <= sum (fall P run) (T run) / (e * INR (T run)) + beta P * D ^ 2 * e / 2 + mean (eps run) (T run).
Proof.
  intros setting diameter step (positive & constant & _).
  pose proof (some_iteration _ _ setting) as some. pose proof (horizon_positive _ some).
  apply mean_le; [assumption |].
  (* e (g_t - eps_t) <= fall_t + e^2 beta D^2/2 *)
  assert (steps : sum (fun t => e * (gap run t - eps run t)) (T run)
                  <= sum (fun t => fall P run t + e ^ 2 * (beta P * D ^ 2 / 2)) (T run)).
  { apply sum_le. intros t range. rewrite <- (constant t range).
    pose proof (one_step P run setting t step range). pose proof (bend_below_diameter P run setting D t step diameter range).
    pose proof (pow2_ge_0 (eta run t)). nra. }
  rewrite sum_scale, sum_minus, sum_plus, sum_constant in steps.
  apply Rmult_le_reg_l with e; [assumption |].
  rewrite (sum_is_mean (eps run)) in steps by assumption.
  replace (e * (INR (T run) * (sum (fall P run) (T run) / (e * INR (T run)) + beta P * D ^ 2 * e / 2 + mean (eps run) (T run))))
    with (sum (fall P run) (T run) + INR (T run) * (e ^ 2 * (beta P * D ^ 2 / 2)) + e * (INR (T run) * mean (eps run) (T run)))
    by (field; lra).
  lra.
Qed.

Theorem FixedStepTelescoped : telescoped.
Proof.
  intros E P run D e setting diameter static step constant.
  rewrite <- (falls_add_up P run static). now apply summed.
Qed.

Theorem FixedStepBound : statement.
Proof.
  intros E P run D M setting diameter initial static step constant.
  pose proof (horizon_positive _ (some_iteration _ _ setting)) as some.
  pose proof (curvature_nonneg P run setting D) as bent.
  pose proof (initial_gap_nonneg P run M step initial) as known.
  eapply Rle_trans; [exact (FixedStepTelescoped E P run D _ setting diameter static step constant) |].
  apply Rplus_le_compat_r. unfold value.
  rewrite <- best_fixed_reaches_phi_inverse by (assumption || apply constant).
  apply Rplus_le_compat_r.
  (* h' <= M *)
  apply Rmult_le_compat_r; [| now apply decrease_below_initial_gap].
  left. apply Rinv_0_lt_compat. apply Rmult_lt_0_compat; [| assumption]. apply constant.
Qed.
