(** What the proofs share: sums, telescoping, one step. *)

From FrankWolfe Require Import setting assumptions.

(** * Sums and means *)

Lemma sum_le f g n : (forall t, (1 <= t <= n)%nat -> f t <= g t) -> sum f n <= sum g n.
Proof.
  induction n as [| n IH]; simpl; intros below; [lra |].
  apply Rplus_le_compat; [apply IH; intros t range |]; apply below; lia.
Qed.

Lemma sum_ext f g n : (forall t, (1 <= t <= n)%nat -> f t = g t) -> sum f n = sum g n.
Proof. intros same; apply Rle_antisym; apply sum_le; intros t range; rewrite (same t range); lra. Qed.

Lemma sum_plus f g n : sum (fun t => f t + g t) n = sum f n + sum g n.
Proof. induction n; simpl; lra. Qed.

Lemma sum_minus f g n : sum (fun t => f t - g t) n = sum f n - sum g n.
Proof. induction n; simpl; lra. Qed.

Lemma sum_scale a f n : sum (fun t => a * f t) n = a * sum f n.
Proof. induction n; simpl; lra. Qed.

Lemma sum_constant a n : sum (fun _ => a) n = INR n * a.
Proof. induction n; [simpl; lra |]. rewrite S_INR; simpl; lra. Qed.

Lemma sum_nonneg f n : (forall t, (1 <= t <= n)%nat -> 0 <= f t) -> 0 <= sum f n.
Proof. intros above. rewrite <- (Rmult_0_r (INR n)), <- sum_constant. now apply sum_le. Qed.

Lemma telescope f n : sum (fun t => f t - f (S t)) n = f 1%nat - f (S n).
Proof. induction n; simpl in *; lra. Qed.

Lemma horizon_positive n : (1 <= n)%nat -> 0 < INR n.
Proof. intros; apply lt_0_INR; lia. Qed.

(** A mean is bounded by what bounds its sum. *)
Lemma mean_le f n b : (1 <= n)%nat -> sum f n <= INR n * b -> mean f n <= b.
Proof.
  intros positive below. unfold mean. apply horizon_positive in positive.
  apply Rmult_le_reg_r with (INR n); [assumption |]. unfold Rdiv.
  rewrite Rmult_assoc, Rinv_l, Rmult_1_r by lra. lra.
Qed.

Lemma sum_is_mean f n : (1 <= n)%nat -> sum f n = INR n * mean f n.
Proof. intros positive. apply horizon_positive in positive. unfold mean. field; lra. Qed.

(** * Inner products *)

(** Takes inner products of sums apart, down to products of the vectors themselves. *)
Ltac expand :=
  repeat first
    [ rewrite inner_plus | rewrite inner_scale
    | rewrite (inner_sym _ _ (plus _ _)) | rewrite (inner_sym _ _ (scale _ _)) ].

(** * One step *)

Section Step.
  Context {E : InnerProductSpace} (P : Problem E) (run : Run E).

  (** ** The one-step inequality *)

  Hypothesis setting : Setting P run.

  Lemma ghat_is_nearly_the_gap t : iteration run t -> gap run t - eps run t <= ghat P run t.
  Proof.
    intros range. destruct (gap_attained _ _ setting t range) as (Z & inside & attained).
    destruct (inexact_oracle _ _ setting t range) as (_ & best). specialize (best Z inside).
    unfold ghat. revert attained best. expand. lra.
  Qed.

  Lemma step_is_feasible : FrankWolfeStep P run true -> forall t, (1 <= t <= S (T run))%nat -> K P (W run t).
  Proof.
    intros (start & steps) t range. destruct t as [| [| t]]; [lia | assumption |].
    destruct (steps (S t)) as (_ & inside & _); [unfold iteration; lia | assumption].
  Qed.

  (** A Frank-Wolfe step that is not corrected is one that may be. *)
  Lemma exact_step_or_lower : FrankWolfeStep P run false -> FrankWolfeStep P run true.
  Proof.
    intros (start & steps). split; [assumption |].
    assert (feasible : forall t, (t <= T run)%nat -> K P (W run (S t))).
    { induction t as [| t IH]; intros range; [assumption |].
      destruct (steps (S t)) as (step & next); [unfold iteration; lia |]. rewrite next.
      apply (convex_set _ _ setting); [apply IH; lia | | assumption].
      apply (inexact_oracle _ _ setting). unfold iteration; lia. }
    intros t range. destruct (steps t range) as (step & next). repeat split; try apply step.
    - apply feasible. apply range.
    - rewrite next. lra.
  Qed.

  (** Along the segment to [V_t] the loss stays below a parabola. *)
  Lemma below_parabola t s : FrankWolfeStep P run true -> iteration run t -> 0 <= s <= 1 ->
    L P t (W run t + s * (V run t - W run t)) <= L P t (W run t) - s * ghat P run t + s ^ 2 * (beta P / 2 * distance2 run t).
  Proof.
    intros step range s01. assert (here : K P (W run t)) by (apply step_is_feasible; unfold iteration in *; auto; lia).
    destruct (inexact_oracle _ _ setting t range) as (there & _).
    pose proof (convex_set _ _ setting _ _ s here there s01) as between.
    pose proof (proj2 (upper_smooth _ _ setting) t _ _ here between) as smooth.
    revert smooth. unfold ghat, distance2. fold (gradient P run t). expand.
    rewrite !(inner_sym _ (V run t) (W run t)). intros smooth.
    eapply Rle_trans; [exact smooth |]. apply Req_le. ring.
  Qed.

  (** ( * )  [L_t(W_{t+1}) <= L_t(W_t) - eta_t (g_t - eps_t) + eta_t^2 (beta/2) |V_t - W_t|^2] *)
  Lemma one_step t : FrankWolfeStep P run true -> iteration run t ->
    eta run t * (gap run t - eps run t) <= fall P run t + eta run t ^ 2 * (beta P / 2 * distance2 run t).
  Proof.
    intros step range. destruct (proj2 step t range) as (bounds & _ & lower).
    pose proof (below_parabola t _ step range bounds). pose proof (ghat_is_nearly_the_gap t range).
    assert (eta run t * (gap run t - eps run t) <= eta run t * ghat P run t) by (apply Rmult_le_compat_l; lra).
    unfold fall. lra.
  Qed.

  Lemma bend_nonneg t : 0 <= beta P / 2 * distance2 run t.
  Proof. pose proof (proj1 (upper_smooth _ _ setting)). apply Rmult_le_pos; [lra | apply inner_nonneg]. Qed.

  Lemma bend_below_diameter D t : FrankWolfeStep P run true -> Diameter P D -> iteration run t ->
    beta P / 2 * distance2 run t <= beta P * D ^ 2 / 2.
  Proof.
    intros step diameter range. pose proof (proj1 (upper_smooth _ _ setting)).
    assert (distance2 run t <= D ^ 2).
    { apply diameter; [apply (inexact_oracle _ _ setting t range) |]. apply step_is_feasible; [assumption |].
      unfold iteration in range; lia. }
    assert (beta P / 2 * distance2 run t <= beta P / 2 * D ^ 2) by (apply Rmult_le_compat_l; lra). lra.
  Qed.

  (** For a loss that stays the same the falls add up to the decrease. *)
  Lemma falls_add_up : Static P -> sum (fall P run) (T run) = decrease P run.
  Proof.
    intros static. rewrite (sum_ext _ (fun t => L P 1 (W run t) - L P 1 (W run (S t)))).
    - rewrite (telescope (fun t => L P 1 (W run t))). unfold decrease. now rewrite (static (T run)).
    - intros t _. unfold fall. now rewrite !(static t).
  Qed.

  Lemma initial_gap_nonneg M : FrankWolfeStep P run true -> Initial_gap P run M -> 0 <= M.
  Proof. intros (start & _) initial. specialize (initial _ start). lra. Qed.

  Lemma curvature_nonneg D : 0 <= beta P * D ^ 2.
  Proof. apply Rmult_le_pos; [apply (upper_smooth _ _ setting) | apply pow2_ge_0]. Qed.

  Lemma decrease_below_initial_gap M : Static P -> FrankWolfeStep P run true -> Initial_gap P run M -> decrease P run <= M.
  Proof.
    intros static step initial. unfold decrease. rewrite (static (T run)). apply initial.
    apply step_is_feasible; [assumption |]. lia.
  Qed.
End Step.
